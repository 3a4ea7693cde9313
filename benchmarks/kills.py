"""Killed anywhere: SIGKILL at random moments, the same command again, and in the end what a run without kills leaves.

    python -m benchmarks.kills --kills 100

Each command runs as a user types it, in a process group of its own, on data that is made here. A first run without
kills is measured and kept. Then, in a copy of the same folder: start the command, kill its whole group, workers
included, at a random moment; look at what it left; start it again. Whenever a run gets to its end, every file below
the folder is compared with the first run's, and a new copy is begun. When the kills are used up, one more run goes to
the end and is compared.

Most moments are drawn uniformly from the time in which the command writes, every fifth from its whole duration. Most
runs are forked from this process, which has imported the libraries; some start an interpreter (`--fresh`), and are
then killed while they import, too.

Compared are bytes, with these exceptions. HDF5: every array and attribute, for a file's bytes tell its history. What
was measured with a clock (`seconds` in JSON, parquet and safetensors) may differ. Exits 1 where anything else does.
"""

from __future__ import annotations

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import machine
from cli import COMMANDS, cli
from featurize.demo import make_demo

SHARE_ANY_MOMENT = 0.2  # of the kills; the others fall where the command writes
LOOK_EVERY_SECONDS = 0.003
CHUNK_ROWS = 4  # so that a run writes often
N_ROWS, N_GROWN, WIDTH = 3000, 4000, 48


@dataclass(frozen=True)
class Command:
    """One that is killed. before: the folder that it starts from, once made. share: of all kills."""

    name: str
    arguments: list[str]
    before: str
    share: float
    stores: tuple[str, ...] = ("features.zarr",)


COMMANDS_KILLED = [
    Command("featurize, no workers", ["featurize", "--encoder", "mel_stats", "--workers", "0"], "ingested", 0.18),
    Command("featurize, 2 workers", ["featurize", "--encoder", "mel_stats", "--workers", "2"], "ingested", 0.12),
    Command(
        "featurize into HDF5",
        ["featurize", "--encoder", "midi_stats", "--workers", "0", "--store", "features.h5"],
        "ingested",
        0.1,
        ("features.h5",),
    ),
    Command("ingest, a new store", ["ingest", "../../rows/grown.csv"], "empty", 0.08),
    Command("ingest, a dataset that grew", ["ingest", "../../rows/grown.csv"], "imported", 0.08),
    Command("ingest, other labels", ["ingest", "../../rows/relabelled.csv"], "imported", 0.06),
    Command("import, a new store", ["import", "../../rows/first.parquet"], "empty", 0.08),
    Command("import, into a store", ["import", "../../rows/second.parquet"], "imported", 0.1),
    Command(
        "ablate",
        ["ablate", "--fusion", "late,gated", "--slots", "all", "--seeds", "2", "--set", "training.epochs=4"],
        "two slots",
        0.1,
    ),
    Command("finetune", ["finetune", "--from", "late", "--epochs", "3", "--workers", "0"], "fitted", 0.1),
]


@dataclass
class Tally:
    """What became of one command."""

    kills: int = 0
    while_writing: int = 0  # of the kills: after the run had changed something
    starts: int = 0
    compared: int = 0
    seconds: float = 0.0  # of a run without kills
    wrong: list[str] = field(default_factory=list)


# Running


def run(arguments: list[str], folder: Path, *, fresh: bool = False) -> int:
    """Start `cli ARGUMENTS` in `folder`, at the head of a process group of its own; returns its process id."""
    log = folder.with_suffix(".log").open("ab")
    if fresh:
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
        command = [sys.executable, "-m", "cli", *arguments]
        with log:
            return subprocess.Popen(
                command, cwd=folder, stdout=log, stderr=log, start_new_session=True, env=environment
            ).pid
    sys.stdout.flush()
    process_id = os.fork()
    if process_id:
        log.close()
        return process_id
    in_a_fork(lambda: command_in(arguments, folder), log.fileno())


def command_in(arguments: list[str], folder: Path) -> None:
    import torch

    from fusion import checkpoint

    torch.set_num_threads(1)
    checkpoint.SAVE_EVERY_SECONDS = 0.0  # a training as short as this would never save
    os.chdir(folder)
    sys.argv = ["cli", *arguments]
    cli.main(arguments, prog_name="cli")


def in_a_fork(work: Callable[[], None], log: int) -> NoReturn:
    """Never returns: the caller's own clean-up is the parent's to do."""
    code = 0
    try:
        os.setsid()
        os.dup2(log, 1)
        os.dup2(log, 2)
        work()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
        code = 70
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(process_id: int) -> int:
    """The exit code; negative where a signal ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(process_id, 0)[1])


def kill_group(process_id: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process_id, signal.SIGKILL)


def run_to_the_end(arguments: list[str], folder: Path) -> None:
    code = wait(run(arguments, folder))
    if code:
        raise click.ClickException(f"cli {' '.join(arguments)} ended with {code}:\n{tail(folder)}")


def tail(folder: Path) -> str:
    return folder.with_suffix(".log").read_text("utf-8", "replace")[-1500:]


def measured(arguments: list[str], folder: Path) -> tuple[float, float]:
    """Seconds to the first change below the folder, and to the end, of a run without kills."""
    before, started, first = state_of(folder), time.monotonic(), None
    process_id = run(arguments, folder)
    while True:
        ended, status = os.waitpid(process_id, os.WNOHANG)
        now = time.monotonic() - started
        if first is None and state_of(folder) != before:
            first = now
        if ended:
            break
        time.sleep(LOOK_EVERY_SECONDS)
    if os.waitstatus_to_exitcode(status):
        raise click.ClickException(f"cli {' '.join(arguments)} failed:\n{tail(folder)}")
    return now if first is None else first, now


def state_of(folder: Path) -> dict[str, int]:
    found = {}
    for path in folder.rglob("*"):
        with suppress(OSError):  # it may go while we look
            found[str(path)] = path.stat().st_mtime_ns
    return found


# Killing


def kill_and_compare(command: Command, work: Path, kills: int, fresh: float, chance: random.Random) -> Tally:
    """`kills` kills of one command, and the comparisons."""
    tally = Tally()
    reference = copy_of(work, command.before, "reference")
    first, end = measured(command.arguments, reference)
    tally.seconds = end
    killed = copy_of(work, command.before, "killed")
    for _ in range(20 * kills):
        if tally.kills == kills:
            break
        is_fresh = chance.random() < fresh
        start = 0.0 if is_fresh or chance.random() < SHARE_ANY_MOMENT else max(first - 0.02, 0)
        before = state_of(killed)
        process_id = run(command.arguments, killed, fresh=is_fresh)
        tally.starts += 1
        time.sleep(chance.uniform(start, end * (2 if is_fresh else 1)))
        kill_group(process_id)
        code = wait(process_id)
        kill_group(process_id)  # workers that it started in the meantime
        if code == -signal.SIGKILL:
            tally.kills += 1
            tally.while_writing += state_of(killed) != before
            tally.wrong += looked_at(command, killed, reference)
        elif code == 0:
            compare(tally, command, reference, killed)
            killed = copy_of(work, command.before, "killed")
        else:
            tally.wrong.append(f"ended with {code} after a kill: {tail(killed)}")
            killed = copy_of(work, command.before, "killed")
    tally.starts += 1
    if code := wait(run(command.arguments, killed)):
        tally.wrong.append(f"the last run ended with {code}: {tail(killed)}")
    else:
        compare(tally, command, reference, killed)
    return tally


def copy_of(work: Path, before: str, name: str) -> Path:
    """A fresh copy of a prepared folder, beside it: paths between the folders stay right."""
    folder = work / "projects" / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.with_suffix(".log").unlink(missing_ok=True)
    return Path(shutil.copytree(work / "projects" / before, folder))


def looked_at(command: Command, killed: Path, reference: Path) -> list[str]:
    """What a reader would find wrong right after a kill. In a fork: this process opens no store."""
    found = killed.with_suffix(".found")
    process_id = os.fork()
    if not process_id:
        with found.open("wb") as log:
            in_a_fork(lambda: print("\n".join(wrong_rows(command, killed, reference)), end=""), log.fileno())
    wait(process_id)
    return [line for line in found.read_text("utf-8").splitlines() if line]


def wrong_rows(command: Command, killed: Path, reference: Path) -> Iterator[str]:
    """Rows marked present whose vector is not what it will be, and what `cli verify` would find."""
    from stores import open_store
    from stores.backends import is_there
    from stores.feature import Status
    from stores.verify import verify

    renewed = ("labels/", "segments/") if "labels" in command.name else ()  # refused, not wrong, until it is done
    for name in command.stores:
        if not is_there(killed / name):
            continue
        store, whole = open_store(killed / name), open_store(reference / name)
        yield from (f"after a kill: {damage}" for damage in verify(store) if not damage.where.startswith(renewed))
        if store.n_segments != whole.n_segments:
            continue  # before it has grown
        for feature in store.features():
            seen = store[feature]
            present = seen.status == Status.PRESENT
            if not np.array_equal(seen.vectors[present], whole[feature].vectors[present]):
                yield f"after a kill: {feature} has rows marked present with other vectors"


# Comparing


def compare(tally: Tally, command: Command, reference: Path, killed: Path) -> None:
    tally.compared += 1
    tally.wrong += differences(command, reference, killed)


def differences(command: Command, one: Path, other: Path) -> list[str]:
    """Files that only one folder has, or that are not the same in both."""
    left, right = files_of(one), files_of(other)
    wrong = [f"only with{'out' * (name in left)} kills: {name}" for name in sorted(left.keys() ^ right.keys())]
    for name in sorted(left.keys() & right.keys()):
        if left[name].read_bytes() != right[name].read_bytes() and content(left[name]) != content(right[name]):
            wrong.append(f"other content: {name}")
    return wrong


def files_of(folder: Path) -> dict[str, Path]:
    return {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}


def content(path: Path) -> Any:
    """What of a file must be the same where its bytes are not: all but what a clock said."""
    if path.suffix == ".json":
        return without_seconds(json.loads(path.read_text("utf-8")))
    if path.suffix == ".html":
        return "made of the tables beside it, and says when"
    if path.suffix == ".parquet":
        table = pq.read_table(path)
        return table.drop_columns([name for name in table.column_names if "seconds" in name]).to_pylist().__repr__()
    if path.suffix == ".csv":
        with path.open(encoding="utf-8", newline="") as file:
            return [without_seconds(row) for row in csv.DictReader(file)]
    if path.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(path, "numpy") as file:
            facts = {key: json.loads(value) for key, value in (file.metadata() or {}).items()}
            return without_seconds(facts), {key: file.get_tensor(key).tobytes() for key in file.keys()}  # noqa: SIM118
    if path.suffix == ".h5":
        return hdf5_content(path)
    return path.read_bytes()


def hdf5_content(path: Path) -> dict[str, Any]:
    import h5py

    found: dict[str, Any] = {}

    def visit(name: str, node: Any) -> None:
        found[name] = node[()].tobytes() if isinstance(node, h5py.Dataset) else None
        found.update({f"{name}@{key}": repr(value) for key, value in node.attrs.items()})

    with h5py.File(path, "r") as file:
        file.visititems(visit)
        visit("", file)
    return found


def without_seconds(value: Any) -> Any:
    if isinstance(value, dict):
        told = {key: child for key, child in value.items() if "seconds" not in key and key != "recorded_at"}
        return {key: without_seconds(child) for key, child in told.items()}
    return [without_seconds(child) for child in value] if isinstance(value, list) else value


# The folders that commands start from


def prepare(work: Path) -> None:
    """Everything is made by the commands themselves, in processes of their own."""
    projects = work / "projects"
    for name in ("empty", "ingested", "imported", "two slots", "fitted"):
        (projects / name).mkdir(parents=True)
    make_demo(work / "demo", n_songs=10, segments_per_song=4, segment_seconds=2.0)
    make_rows(work / "rows")
    in_own_process(lambda: small_chunks(work / "demo", projects / "ingested"), projects / "ingested")
    run_to_the_end(["import", "../../rows/first.parquet"], projects / "imported")
    run_to_the_end(["import", "../../rows/few.parquet"], projects / "two slots")
    targets = "model: {targets: [{name: mood}]}\n"
    (projects / "two slots" / "config.yaml").write_text(f"{targets}training: {{bootstrap: 100}}\n")
    small = "audio_encoder: {type: mel_cnn, hidden_dim: 12, options: {channels: [4, 8], n_mels: 16}}"
    (projects / "fitted" / "config.yaml").write_text(
        f"model: {{targets: [{{name: mood}}], {small}}}\ntraining: {{epochs: 3, bootstrap: 100, seeds: [0]}}\n"
    )
    for arguments in (
        ["ingest", "../../demo"],
        ["train-encoder", "--encoder", "mel_cnn", "--workers", "0"],
        ["featurize", "--encoder", "mel_cnn", "--workers", "0"],
        ["featurize", "--encoder", "midi_stats", "--workers", "0"],
        ["fit", "--fusion", "late", "--no-baselines"],
    ):
        run_to_the_end(arguments, projects / "fitted")


def in_own_process(work: Callable[[], None], folder: Path) -> None:
    with folder.with_suffix(".log").open("ab") as log:
        process_id = os.fork()
        if not process_id:
            in_a_fork(work, log.fileno())
    if wait(process_id):
        raise click.ClickException(tail(folder))


def small_chunks(data: Path, folder: Path) -> None:
    """The same store in both backends, in chunks so small that `featurize` writes many times."""
    from featurize.config import DataConfig
    from featurize.ingestion import check, write_store

    for name in ("features.zarr", "features.h5"):
        write_store(check(data, DataConfig()), folder / name, chunk_rows=CHUNK_ROWS)


def make_rows(folder: Path) -> None:
    """Tables without media: `grown.csv` has the rows of `first.parquet` and more; `second.parquet` further vectors."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    ids = [f"s{row}" for row in range(N_GROWN)]
    songs = [f"song {row // 8}" for row in range(N_GROWN)]
    moods = np.where(rng.random(N_GROWN) < 0.5, "calm", "wild").tolist()
    lyrics = ["la " * (1 + row % 9) for row in range(N_GROWN)]
    for name, n, header, labels in (
        ("grown.csv", N_GROWN, ["mood"], [moods]),
        ("relabelled.csv", N_ROWS, ["mood", "also"], [moods[::-1], lyrics]),
    ):
        with (folder / name).open("w", encoding="utf-8", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["segment_id", "group", "text", *header])
            rows.writerows(list(zip(ids, songs, lyrics, *labels, strict=True))[:n])

    def write(name: str, n: int, columns: tuple[str, ...], scale: float = 1.0) -> None:
        table: dict[str, Any] = {"segment_id": ids[:n], "song_id": songs[:n], "mood": moods[:n]}
        for column in columns:
            vectors = scale * rng.normal(size=(n, WIDTH)).astype(np.float32)
            table[f"{column}_embedding"] = pa.array(list(vectors), pa.list_(pa.float32(), WIDTH))
        pq.write_table(pa.table(table), folder / name)

    write("first.parquet", N_ROWS, ("lyric", "audio"))
    write("second.parquet", N_ROWS, ("midi", "concept", "melody"), scale=3e4)  # beyond float16: arrays are widened
    write("few.parquet", 160, ("lyric", "audio"))


@click.command()
@click.option("--kills", type=click.IntRange(1), default=100, show_default=True, help="In all.")
@click.option("--only", help="Commands whose name begins so.")
@click.option("--fresh", type=click.FloatRange(0, 1), default=0.1, show_default=True, help="Share of new interpreters.")
@click.option("--seed", type=int, default=0, show_default=True)
def main(kills: int, only: str | None, fresh: float, seed: int) -> None:
    from importlib import import_module

    os.environ["OMP_NUM_THREADS"] = "1"
    for place, _ in COMMANDS.values():  # before the first fork
        import_module(place.partition(":")[0])
    for module in ("fusion.ablation", "fusion.finetuning", "featurize.pipeline", "featurize.import_vectors", "h5py"):
        import_module(module)
    print(machine("torch", "zarr", "h5py", "numpy"), flush=True)
    chosen = [command for command in COMMANDS_KILLED if command.name.startswith(only or "")]
    total, wrong, started = Tally(), 0, time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        prepare(Path(temporary))
        print("| command | a run, s | kills | of them while it wrote | starts | compared | |")
        print("| --- | ---: | ---: | ---: | ---: | ---: | --- |", flush=True)
        share = sum(command.share for command in chosen)
        ends = np.round(np.cumsum([kills * command.share / share for command in chosen])).astype(int)
        for command, n in zip(chosen, np.diff(ends, prepend=0).tolist(), strict=True):
            tally = kill_and_compare(command, Path(temporary), n, fresh, random.Random(f"{seed} {command.name}"))
            found = "equal" if not tally.wrong else f"{len(tally.wrong)} differences"
            counts = f"{tally.kills} | {tally.while_writing} | {tally.starts} | {tally.compared}"
            print(f"| {command.name} | {tally.seconds:.1f} | {counts} | {found} |", flush=True)
            for line in dict.fromkeys(tally.wrong):
                print(f"    {line}", flush=True)
            wrong += len(tally.wrong)
            total.kills, total.compared = total.kills + tally.kills, total.compared + tally.compared
    seconds = time.monotonic() - started
    print(f"\n{total.kills} kills, {total.compared} ends compared, {wrong} differences; {seconds:.0f} s")
    raise SystemExit(1 if wrong or total.kills < kills else 0)


if __name__ == "__main__":
    main()
