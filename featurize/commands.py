"""`cli ingest`, `cli split` and `cli featurize`: from raw data to features."""

from __future__ import annotations

import json
import os
from collections import Counter
from typing import Any

import click

from featurize.encoders import known_encoders
from featurize.engines.options import engine_options
from featurize.project import Project, code_option, project_options
from stores.commands import LOCATION
from stores.completion import complete_labels, complete_splits, starting_with
from stores.remote import Location
from stores.shard import Shard


def complete_encoders(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Encoders, for the Tab key."""
    return starting_with(incomplete, known_encoders())


@click.command("ingest")
@click.argument("data", type=LOCATION, required=False)
@project_options
@click.option(
    "--chunk-rows", type=click.IntRange(1), default=1024, show_default=True, help="Of a new store: see docs/scale.md."
)
@click.option("--check", "check_only", is_flag=True, help="Only look for problems; write nothing.")
@click.option("--replace", is_flag=True, help="Make an existing store anew; its features are lost.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def ingest_command(
    project: Project, data: Location | None, chunk_rows: int, check_only: bool, replace: bool, as_json: bool
) -> None:
    """Check a dataset and make its store. DATA is a folder with segments.csv, a table, or *_metadata.parquet.

    Every problem is listed before anything is written. A first split is made where the store has none.

    \b
    Example:
      cli ingest my-songs/
    """
    from featurize.errors import SourceError
    from featurize.ingest_api import check_data, write

    found = check_data(data, project.config)
    share = {modality: int(there.sum()) for modality, there in found.presence.items()}
    result: dict[str, Any] = {
        "segments": len(found.source),
        "groups": len(set(found.source.groups)),
        "layout": found.source.layout,
        "present": share,
        "labels": list(found.labels),
        "problems": [
            {"severity": str(p.severity), "what": p.what, "count": p.count, "examples": p.examples, "remedy": p.remedy}
            for p in found.problems
        ],
    }
    say = _silent if as_json else click.echo
    for problem in found.problems:
        say(str(problem))
    path = data or project.config.data.path
    say(f"{path}: {result['segments']:,} segments in {result['groups']:,} groups ({found.source.layout} layout)")
    for modality, count in share.items():
        say(f"  {modality:<5} {count:>8,}  {count / len(found.source):6.1%}")
    say(f"  labels: {', '.join(found.labels) or 'none'}")
    for modality, scope in found.source.scopes.items():
        if scope == "song" and share[modality] and found.source.table.roles.get("start_seconds"):
            say(f"  {modality} files are cut to start_seconds..end_seconds (data.{modality}_is: {scope})")
    if check_only and found.errors:
        raise SourceError(f"{len(found.errors)} kinds of errors stand in {found.source.table.path}.")
    if not check_only:
        done = write(found, project.store_path, project.config, replace=replace, chunk_rows=chunk_rows)
        result["store"] = str(done.written)
        say(WRITTEN[done.written].format(store=project.store_path))
        result["split"] = tell_splits(project, done.store, (done.splits, done.no_split), say)
    if as_json:
        click.echo(json.dumps(result, indent=2))


@click.command("split")
@project_options
@click.option("--name", help="Name of the split. [default: default, or cv with --folds]")
@click.option("--method", type=click.Choice(["grouped", "random"]), help="`random` cuts through songs, and leaks.")
@click.option("--val", type=float, help="Share of validation segments.")
@click.option("--test", type=float, help="Share of test segments.")
@click.option("--folds", type=int, help="k-fold: writes NAME.0, NAME.1, …; each fold is test once.")
@click.option("--stratify-by", shell_complete=complete_labels, help="The label whose classes are spread evenly.")
@click.option("--seed", type=int)
@click.option("--replace", is_flag=True, help="Make it anew where it exists; runs on the old one cannot be compared.")
def split_command(project: Project, replace: bool, **options: Any) -> None:
    """Deal the segments to train, val and test, whole songs at a time, and freeze that in the store.

    \b
    Example:
      cli split --folds 5 --name cv
    """
    given = {key: value for key, value in options.items() if value is not None}
    if given.get("folds") and "name" not in given:
        given["name"] = "cv"
    store = project.open_store()
    for line in _make_splits(project, store, given, replace):
        click.echo(line)


class _NamesEncoders(click.Command):
    """Its help ends with the encoders there are, others' that are installed included; none of them is imported."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Encoders"):
            formatter.write_text(f"{', '.join(known_encoders())}, or code of your own: my_encoder.py:MyEncoder")


@click.command("featurize", cls=_NamesEncoders)
@click.option(
    "--encoder",
    "encoder_name",
    metavar="NAME|FILE.py:CLASS|RUN:SLOT",
    shell_complete=complete_encoders,
    help="Which encoder: one of those below; a class of your own, my_encoder.py:MyEncoder or my.module:MyEncoder; or "
    "one that `cli finetune` tuned, e.g. late-tuned:audio.",
)
@project_options
@code_option
@click.option("--list", "list_only", is_flag=True, help="List the encoders and leave.")
@click.option("--as", "save_as", help="Store the feature under this name instead of the encoder's.")
@click.option("--replace", is_flag=True, help="Write the feature anew, e.g. after changing options.")
@click.option("--retry-failed", is_flag=True, help="Try failed rows again though their input is the same.")
@click.option("--repair", is_flag=True, help="Look for damaged chunks first; encode their rows again, and no others.")
@click.option("--option", "option_pairs", multiple=True, metavar="KEY=VALUE", help="An option of the encoder.")
@click.option(
    "--split",
    "split_name",
    shell_complete=complete_splits,
    help="The split whose training part an encoder is fitted on.",
)
@click.option("--workers", type=click.IntRange(0), default=None, help="Processes that prepare. [default: all cores]")
@click.option("--batch-size", type=click.IntRange(1), help="At most so many rows in a batch.")
@click.option("--batch-budget", type=click.IntRange(1), help="Tokens or samples in a batch. [default: the encoder's]")
@click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), default="auto", show_default=True, help="Where."
)
@click.option(
    "--precision", type=click.Choice(["fp32", "bf16"]), default="fp32", show_default=True, help="Of the forward pass."
)
@click.option("--frames", type=click.IntRange(0, 65535), default=0, help="Keep up to so many frames a segment, too.")
@click.option("--dtype", type=click.Choice(["float16", "float32"]), default="float16", show_default=True)
@click.option(
    "--audit", "audit_rows", type=click.IntRange(0), default=0, help="Encode so many rows again, and compare."
)
@click.option(
    "--dry-run", is_flag=True, help="Say what there is to do, how long it takes and how large it is; no more."
)
@engine_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def featurize_command(
    project: Project,
    encoder_name: str | None,
    list_only: bool,
    save_as: str | None,
    option_pairs: tuple[str, ...],
    split_name: str | None,
    workers: int | None,
    dry_run: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Run one encoder over all segments and write its vectors to the store.

    Only what is new or changed is encoded, equal inputs once. Interrupt it at any time; the same command goes on.

    \b
    Example:
      cli featurize --encoder mel_stats
    """
    if list_only:
        for name in known_encoders():
            click.echo(name)
        return
    if encoder_name is None:
        raise click.UsageError(f"Name one: --encoder {' | '.join(known_encoders())}")
    from featurize.api import choose_encoder, featurize
    from featurize.progress import progress_bar

    store = project.open_store()
    encoder, tuned_name = choose_encoder(store, encoder_name, project.config, parse_options(option_pairs))
    settings |= {"save_as": save_as or tuned_name}
    settings["workers"] = os.cpu_count() or 1 if workers is None else workers
    if dry_run:
        _show_plan(project, store, encoder, as_json, split_name=split_name or project.config.split.name, **settings)
        return
    try:
        with progress_bar(encoder_name, "segments") as progress:
            done = featurize(store, encoder, config=project.config, split=split_name, progress=progress, **settings)
    except KeyboardInterrupt:
        click.echo("Interrupted. What was encoded is stored; the same command goes on from there.", err=True)
        raise SystemExit(130) from None
    if as_json:
        facts = {key: value for key, value in vars(done.extraction).items() if key != "new_failures"}
        audited = vars(done.audit) if done.audit else None
        repaired = [[rows.start, rows.stop] for rows in done.repaired]
        shown = {"feature": done.feature.name, "width": done.feature.width, **facts, "repaired": repaired}
        shown |= {"shard": settings["shard"] and str(settings["shard"]), "audit": audited}
        click.echo(json.dumps(shown, indent=2))
        raise SystemExit(0 if done.audit is None or done.audit.passed else 1)
    e = done.extraction
    if done.fitted_on:
        click.echo(f"Fitted {encoder_name} on the training part of split {done.fitted_on}.")
    shard: Shard | None = settings["shard"]
    what = f"{done.feature.name}, shard {shard}" if shard else done.feature.name
    click.echo(
        f"{what}: {e.present:,} present, {e.absent:,} absent, {e.failed:,} failed of {e.rows:,}"
        f" ({done.feature.width} x {done.feature.dtype})"
    )
    click.echo(
        f"  this run: {e.encoded:,} encoded, {e.copied:,} copied from equal inputs, {e.unchanged:,} unchanged,"
        f" in {e.seconds:.1f} s"
    )
    if shard:
        click.echo(_told_of_others(shard, done.feature))
    if settings["repair"]:
        rows = ", ".join(f"{rows.start} to {rows.stop - 1}" for rows in done.repaired)
        click.echo(f"  {f'repaired: rows {rows}' if rows else 'nothing was damaged'}")
    _show_failures(store.ids, e.new_failures)
    if done.new_rows:
        click.echo(f"  {done.new_rows:,} segments of the data are not in the store; `cli ingest` adds them.")
    if done.audit is not None:
        _show_audit(done.audit)


UNPLANNED = {"repair": "repair", "audit": "audit_rows", "shard": "shard", "engine": "engine"}


def _told_of_others(shard: Shard, feature: Any) -> str:
    status = feature.status
    pending, n_chunks = int((status == 0).sum()), len(feature.chunks())
    if not shard.of_all(range(n_chunks)):
        return f"  nothing to do: {feature.name} has {n_chunks:,} chunks of {feature.chunk_rows:,} rows"
    others = f"{pending:,} of {len(status):,} rows wait for other shards" if pending else "no row is pending any more"
    return f"  the whole feature: {others}"


def _show_plan(project: Project, store: Any, encoder: Any, as_json: bool, **settings: Any) -> None:
    from featurize.dry_run import plan
    from featurize.progress import duration, progress_bar, size

    unplanned = {name: settings.pop(key) for name, key in UNPLANNED.items()}
    for option, value in unplanned.items():
        if value:
            raise click.UsageError(f"--dry-run does not look ahead at --{option}; leave one of them away.")
    with progress_bar(f"{encoder.name} (dry run)", "segments") as progress:
        found = plan(store, project.open_source(store), encoder, progress=progress, **settings)
    if as_json:
        click.echo(json.dumps(vars(found), indent=2))
        return
    stored = ", ".join(f"{count:,} {status}" for status, count in found.stored.items() if count)
    click.echo(f"{found.feature}: {found.rows:,} segments, now {stored} ({found.width} x {settings['dtype']})")
    click.echo(
        f"  would encode {found.to_encode:,} different inputs, copy {found.copied:,} from equal ones, leave"
        f" {found.unchanged:,} unchanged; {found.absent:,} absent, {found.unreadable:,} cannot be read"
    )
    if found.seconds is None:
        click.echo("  time unknown: none of a sample can be encoded")
    elif found.to_encode:
        how = f"by encoding {found.sample:,} of them; {settings['workers']} processes prepare"
        click.echo(f"  about {duration(found.seconds)}, measured {how}")
    click.echo(f"  {size(found.n_bytes)} in the store. Nothing was written.")


def tell_splits(project: Project, store: Any, first: tuple[list[Any], str | None], say: Any) -> str | None:
    """Say what `featurize.splits.first_split` has made. Returns the name of the project's split, where it is there."""
    name: str = project.config.split.name
    splits, why_none = first
    if splits:
        for line in _split_lines(splits, store, project.config.split):
            say(line)
    if why_none is not None:
        say(f"No split yet: {why_none}")
        return None
    return name if splits or name in store.splits() else None


def _make_splits(project: Project, store: Any, given: dict[str, Any], replace: bool) -> list[str]:
    from pydantic import ValidationError

    from featurize.config import SplitConfig
    from featurize.errors import SplitError
    from featurize.splits import write_splits

    try:
        config = SplitConfig(**{**project.config.split.model_dump(), **given})
    except ValidationError as error:
        mistake = error.errors()[0]
        where = ".".join(str(part) for part in mistake["loc"])
        raise SplitError(f"{where} {mistake['msg']}.".strip()) from error
    return _split_lines(write_splits(store, config, list(project.config.model.targets), replace=replace), store, config)


def _split_lines(splits: list[Any], store: Any, config: Any) -> list[str]:
    import numpy as np

    from featurize.splits import large_groups
    from stores.store import Part

    groups = store.groups
    lines = []
    for split in splits:
        sizes = ", ".join(
            f"{part.name.lower()} {len(rows):,} ({len(np.unique(groups[rows])):,} groups)"
            for part in (Part.TRAIN, Part.VAL, Part.TEST)
            if len(rows := split.rows(part))
        )
        by = f", stratified by {split.facts['stratified_by']}" if split.facts["stratified_by"] else ""
        leak = "; it cuts through groups: results on it LEAK" if split.facts["leaks"] else ""
        lines.append(f"Split {split.name} ({config.method}{by}, seed {config.seed}): {sizes}{leak}")
    return lines + large_groups(groups, config)


def parse_options(pairs: tuple[str, ...]) -> dict[str, Any]:
    """`--option key=value` pairs, values as YAML reads them."""
    from yaml import YAMLError

    from featurize.bounded_yaml import read_yaml

    options = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise click.UsageError(f"--option takes KEY=VALUE, not {pair!r}.")
        try:
            options[key] = read_yaml(value)
        except (YAMLError, ValueError) as error:
            raise click.UsageError(
                f"--option {key} is no value that YAML knows: {' '.join(str(error).split())}"
            ) from error
    return options


def _show_failures(ids: Any, failures: list[tuple[int, str]]) -> None:
    counts = Counter(reason for _, reason in failures)
    for reason, count in counts.most_common(5):
        examples = [repr(ids[row]) for row, why in failures if why == reason][:3]
        click.echo(f"  failed {count:,}: {reason} (e.g. {', '.join(examples)})")
    if len(counts) > 5:
        click.echo(f"  and {len(counts) - 5:,} other reasons; `cli inspect --json` lists them.")


def _show_audit(audit: Any) -> None:
    passed_over = f" ({audit.changed:,} passed over: input changed or gone)" if audit.changed else ""
    click.echo(f"Audit of {audit.rows:,} rows{passed_over}, largest deviation relative to the vector's largest number:")
    click.echo(f"  alone against other batches and order: {audit.batches:.1e} (allowed {audit.tolerance:g})")
    click.echo(f"  stored against alone: {audit.stored:.1e} (storing rounds by up to {audit.rounding:.1e})")
    if not audit.passed:
        click.echo("The store does not hold what this encoder says. Write the feature anew with --replace.", err=True)
        raise SystemExit(1)


WRITTEN = {
    "new": "Wrote {store}.",
    "renewed": "Renewed labels and columns of {store}; splits and features are as they were.",
    "grown": "{store} has grown. Splits leave the new segments out, features have them pending:\n"
    "  run featurize again, and cli split with another --name or --replace.",
}


def _silent(_line: str) -> None:
    pass
