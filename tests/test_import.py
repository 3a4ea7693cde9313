"""`cli import`: the user's own files of vectors, as they are; what is absent, what is refused, what a run knows."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurize.errors import SourceError
from featurize.sources.vectors import open_vectors
from stores import open_store
from stores.feature import Status
from stores.verify import verify
from tests.test_kill import every_file

pytestmark = pytest.mark.usefixtures("unrendered")

FAST = ("--set", "training.epochs=2", "--set", "training.bootstrap=100", "--seeds", "1", "--no-baselines")
N, WIDTH = 40, 6


def user_table(n: int = N, width: int = WIDTH, seed: int = 0) -> dict[str, pa.Array]:
    """The user's columns: every third segment is instrumental, one vector is null, one is zero, one has no flag."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(n, width)).astype(np.float16)
    flags: list[bool | None] = [row % 3 != 0 for row in range(n)]
    lyric: list[np.ndarray | None] = [
        v if there else np.zeros(width, np.float16) for v, there in zip(vectors, flags, strict=False)
    ]
    lyric[1], lyric[2], flags[4] = None, np.zeros(width, np.float16), None
    moods = rng.dirichlet([1, 1, 1], size=n)
    return {
        "segment_id": pa.array([f"s{row}" for row in range(n)]),
        "song_id": pa.array([f"song {row // 4}" for row in range(n)]),
        "lyric_text": pa.array(["la la"] * n),
        "start_seconds": pa.array(np.arange(n) * 2.0),
        "end_seconds": pa.array(np.arange(n) * 2.0 + 2),
        "lyric_embedding": pa.array(lyric, pa.list_(pa.float16())),
        "has_lyric_embedding": pa.array(flags),
        "concept_embedding": pa.array(list(rng.normal(size=(n, 3)).astype("f4")), pa.list_(pa.float32(), 3)),
        "mood_prob_happy": pa.array(moods[:, 0]),
        "mood_prob_sad": pa.array(moods[:, 1]),
        "color_probs": pa.array(list(moods), pa.list_(pa.float64())),
        "confidence": pa.array(rng.random(n)),
        "genre": pa.array(["rock", None] * (n // 2)),
    }


def write_parquet(path: Path, columns: dict[str, pa.Array], row_group_size: int = 7) -> Path:
    pq.write_table(pa.table(columns), path, row_group_size=row_group_size)
    return path


def lyric_of(columns: dict[str, pa.Array]) -> tuple[np.ndarray, np.ndarray]:
    """What must come out, by the slow way: vectors float16 (n, D) with zeros, and presence bool (n,)."""
    cells, flags = columns["lyric_embedding"].to_pylist(), columns["has_lyric_embedding"].to_pylist()
    present = np.array([f is not False and c is not None and any(c) for c, f in zip(cells, flags, strict=False)])
    return np.array([c if p else [0] * WIDTH for c, p in zip(cells, present, strict=False)], np.float16), present


@pytest.fixture
def imported(project, run_cli) -> Path:
    """A project folder whose store was made of the user's parquet."""
    write_parquet(project / "training.parquet", user_table())
    run_cli("import", "training.parquet", "--set", "model.targets=[{name: confidence}]")
    return project


@pytest.mark.parametrize("store_name", ["features.zarr", "features.h5"])
def test_the_users_parquet_makes_a_store(project, run_cli, store_name):
    columns = user_table()
    write_parquet(project / "training.parquet", columns)
    output = run_cli("import", "training.parquet", "--store", store_name).output
    assert "40 segments in 10 groups" in output and "text/lyric_embedding: 24 present, 16 absent" in output
    assert "(flag false 14, null or empty 1, all zero 1)" in output
    store = open_store(store_name)
    vectors, present = lyric_of(columns)
    feature = store["text/lyric_embedding"]
    assert feature.present.tolist() == present.tolist() and (feature.vectors[:] == vectors).all()
    assert set(feature.status.tolist()) == {Status.PRESENT, Status.ABSENT}
    assert store["concept/concept_embedding"].present.all()
    assert store.groups[5] == "song 1" and store.segment_column("end_seconds")[3] == 8
    assert store.label_names() == ["mood_prob_happy", "mood_prob_sad", "color_probs", "confidence", "genre"]
    assert store.label("color_probs").shape == (N, 3) and store.label("genre")[1] == ""
    assert store.splits() == ["default"] and list(verify(store)) == []


TYPES = [pa.list_(pa.float16()), pa.list_(pa.float32()), pa.large_list(pa.float64()), pa.list_(pa.float32(), WIDTH)]


@pytest.mark.parametrize("kind", TYPES, ids=str)
def test_whatever_list_type_the_column_has_the_vectors_are_the_same(imported, run_cli, kind):
    columns = user_table()
    cells = columns["lyric_embedding"].to_pylist()
    if pa.types.is_float16(kind.value_type):
        cells = [None if cell is None else np.array(cell, np.float16) for cell in cells]
    columns = {**columns, "lyric_embedding": pa.array(cells, kind)}
    write_parquet(imported / "other.parquet", columns)
    run_cli("import", "other.parquet", "--column", "lyric_embedding=text/other")
    store = open_store("features.zarr")
    assert (store["text/other"].vectors[:] == store["text/lyric_embedding"].vectors[:]).all()
    assert store["text/other"].fingerprint != store["text/lyric_embedding"].fingerprint  # another file


@given(
    cells=st.lists(st.none() | st.just([]) | st.lists(st.sampled_from([0.0, 1.5, -2.0]), min_size=3, max_size=3)),
    flags=st.lists(st.sampled_from([True, False, None]), min_size=30, max_size=30),
    group=st.integers(1, 9),
)
@settings(max_examples=30)
def test_absent_is_what_is_flagged_null_empty_or_zero(tmp_path_factory, cells, flags, group):
    cells = cells[:30] + [[1.0, 2.0, 3.0]]
    flags = [*flags[: len(cells) - 1], True]
    columns = {
        "id": pa.array(range(len(cells))),
        "x": pa.array(cells, pa.list_(pa.float32())),
        "flag": pa.array(flags),
    }
    path = write_parquet(tmp_path_factory.mktemp("any") / "any.parquet", columns, group)
    file = open_vectors(path)
    parts = list(file.vectors("x", "flag"))
    expected = {
        i: cell for i, (cell, f) in enumerate(zip(cells, flags, strict=False)) if f is not False and cell and any(cell)
    }
    found = {int(r): v.tolist() for part in parts for r, v in zip(part.rows, part.vectors, strict=False)}
    assert found == expected and file.ids == [str(i) for i in range(len(cells))]
    absent = [int(row) for part in parts for rows in part.absent.values() for row in rows]
    assert sorted([*absent, *found]) == list(range(len(cells)))


def test_a_second_file_joins_by_id_in_any_order_and_counts_who_is_missing(imported, run_cli):
    order = np.random.default_rng(1).permutation(N)[:30]
    vectors = np.random.default_rng(2).normal(size=(30, 4)).astype(np.float32)
    columns = {
        "segment_id": pa.array([f"s{row}" for row in order] + ["stranger", "s99"]),
        "audio_embedding": pa.array([*vectors, vectors[0], vectors[0]], pa.list_(pa.float32())),
        "has_audio_embedding": pa.array([True] * 29 + [False, True, True]),
    }
    write_parquet(imported / "clap.parquet", columns)
    result = json.loads(run_cli("import", "clap.parquet", "--dtype", "float32", "--json").output)
    (feature,) = result["features"]
    assert feature["present"] == 29 and feature["absent"] == {"flag false": 1, "not in the file": 10}
    assert feature["unknown_ids"] == 2 and feature["unknown_examples"] == ["stranger", "s99"]
    stored = open_store("features.zarr")["audio/audio_embedding"]
    assert (stored.vectors[order[:29]] == vectors[:29]).all()
    assert stored.status[order[29]] == Status.ABSENT and (stored.status != Status.PENDING).all()
    output = run_cli("import", "clap.parquet", "--replace").output
    assert "2 ids of the file" in output and "'stranger', 's99'" in output


def as_hdf5(path: Path, ids: list[str], vectors: np.ndarray, flags: np.ndarray) -> None:
    with h5py.File(path, "w") as file:
        file["names"] = ids
        file["encoded/audio_embedding"] = vectors
        file["encoded/has_audio_embedding"] = flags


def as_npz(path: Path, ids: list[str], vectors: np.ndarray, flags: np.ndarray) -> None:
    arrays = {"names": np.array(ids), "audio_embedding": vectors, "has_audio_embedding": flags}
    np.savez_compressed(path, **arrays)


@pytest.mark.parametrize(("name", "write"), [("clap.h5", as_hdf5), ("clap.npz", as_npz)])
def test_hdf5_and_npz(imported, run_cli, name, write):
    vectors = np.random.default_rng(0).normal(size=(N, 4)).astype(np.float32)
    vectors[3], flags = 0, np.arange(N) != 7
    ids = [f"s{row}" for row in range(N)][::-1]
    write(imported / name, ids, vectors, flags)
    assert "no column segment_id or ids or id" in run_cli("import", name, code=2).output
    output = run_cli("import", name, "--ids", "names").output
    assert "audio/audio_embedding: 38 present, 2 absent (flag false 1, all zero 1)" in output
    stored = open_store("features.zarr")["audio/audio_embedding"]
    expected = np.where(flags[:, None], vectors, 0).astype(np.float16)[::-1]
    assert (stored.vectors[:] == expected).all()


def test_what_the_user_says_of_the_encoder_is_what_makes_two_files_one_encoders(imported, run_cli):
    write_parquet(imported / "more.parquet", user_table(seed=5))
    says = ("--made-by", "lyric_embedding=microsoft/deberta-v3-base, mean")
    for name, file in (("one", "training.parquet"), ("two", "more.parquet")):
        run_cli("import", file, "--column", f"lyric_embedding=text/{name}", *says)
    store = open_store("features.zarr")
    assert store["text/one"].fingerprint == store["text/two"].fingerprint
    assert store["text/one"].fingerprint != store["text/lyric_embedding"].fingerprint
    record = store["text/two"].record["imported_from"]
    assert record["file"] == "more.parquet" and len(record["sha256"]) == 64 and record["column"] == "lyric_embedding"
    assert "by import of microsoft/deberta-v3-base, mean [" in run_cli("inspect").output


def test_fit_works_without_raw_data_and_says_what_it_cannot_know(imported, run_cli):
    (imported / "config.yaml").write_text(
        "model:\n  targets:\n"
        "    - {name: mood, columns: [mood_prob_happy, mood_prob_sad]}\n"
        "    - {name: color_probs}\n    - {name: confidence}\n"
    )
    output = run_cli("fit", *FAST).output
    assert "text/lyric_embedding was imported: whether its encoder has seen" in output
    metrics = json.loads((imported / "runs/late/metrics.json").read_text())
    assert {name: target["kind"] for name, target in metrics["targets"].items()} == {
        "mood": "soft_distribution",
        "color_probs": "soft_distribution",
        "confidence": "regression",
    }
    assert metrics["slots"] == {"text": "lyric_embedding", "concept": "concept_embedding"}


@pytest.mark.parametrize("command", [["featurize", "--encoder", "mel_stats"], ["align"]])
def test_what_needs_raw_data_says_in_one_line_that_there_is_none(imported, run_cli, command):
    output = run_cli(*command, code=2).output
    assert "was made of vectors and has no raw data" in output and len(output.strip().splitlines()) == 1


def test_raw_data_may_come_later(imported, run_cli):
    rows = [f"s{row},song {row // 4},la number {row},{row % 2}" for row in range(N)]
    (imported / "segments.csv").write_text("\n".join(["segment_id,group,text,mood", *rows]))
    assert "Renewed labels" in run_cli("ingest", ".").output
    store = open_store("features.zarr")
    assert store.label_names() == ["mood"] and store["text/lyric_embedding"].present.sum() == 24
    run_cli("featurize", "--encoder", "lsa")


def changed(**columns: pa.Array) -> dict[str, pa.Array]:
    return {**user_table(), **columns}


def cells_with(row: int, cell: list[float] | None) -> pa.Array:
    cells = [[1.0] * WIDTH for _ in range(N)]
    cells[row] = cell
    return pa.array(cells, pa.list_(pa.float64()))


IDS = [f"s{row}" for row in range(N)]
REFUSED = {
    "wide": (
        changed(lyric_embedding=cells_with(17, [1.0] * 5)),
        "has 5 numbers in row 18 ('s17'), 6 in the rows before",
    ),
    "nan": (
        changed(lyric_embedding=cells_with(17, [1, 2, 3, 4, 5, float("nan")])),
        "NaN or infinity in row 18 ('s17')",
    ),
    "null inside": (changed(lyric_embedding=cells_with(10, [1, 2, 3, 4, 5, None])), "infinity in row 11 ('s10')"),
    "too large": (changed(lyric_embedding=cells_with(1, [1e300] * 6)), "NaN or infinity in row 2 ('s1')"),
    "twice": (
        changed(segment_id=pa.array([*IDS[:-1], "s3"])),
        "of segment_id are there more than once, e.g. 's3'",
    ),
    "no rows": ({name: values.slice(0, 0) for name, values in user_table().items()}, "bad.parquet has no rows"),
    "no id": (changed(segment_id=pa.array([*IDS[:-1], None])), "segment_id is empty in row 40"),
    "text": (changed(lyric_embedding=pa.array(["[1, 2]"] * N)), "lyric_embedding holds string; vectors are lists"),
    "all gone": (changed(has_lyric_embedding=pa.array([False] * N)), "lyric_embedding has not one vector"),
}


@pytest.mark.parametrize("into_a_store", [False, True])
@pytest.mark.parametrize("case", REFUSED)
def test_what_is_wrong_is_named_and_nothing_is_written(project, run_cli, case, into_a_store):
    columns, told = REFUSED[case]
    write_parquet(project / "bad.parquet", columns)
    if into_a_store:
        write_parquet(project / "good.parquet", user_table())
        run_cli("import", "good.parquet", "--column", "concept_embedding=concept/given")
    before = {str(path): path.read_bytes() for path in project.rglob("*") if path.is_file()}
    output = run_cli("import", "bad.parquet", code=2).output
    assert told in output and len(output.strip().splitlines()) <= 2, output
    assert {str(path): path.read_bytes() for path in project.rglob("*") if path.is_file()} == before


def test_rows_that_a_flag_rules_out_may_hold_anything(imported, run_cli):
    columns = changed(lyric_embedding=cells_with(0, [float("nan")] * 3))  # row 0 is flagged false
    write_parquet(imported / "other.parquet", columns)
    run_cli("import", "other.parquet", "--column", "lyric_embedding=text/other")
    assert not open_store("features.zarr")["text/other"].present[0]


class Killed(BaseException):
    pass


@pytest.mark.parametrize("store_name", ["features.zarr", "features.h5"])
@pytest.mark.parametrize("widened", [False, True])
def test_the_same_command_goes_on_where_an_import_was_killed(imported, run_cli, monkeypatch, store_name, widened):
    """At each write in turn; `benchmarks/kills.py` has the signals."""
    columns = user_table(seed=1)
    if widened:
        columns["lyric_embedding"] = pa.array([[1e5 * (row == 31)] * WIDTH for row in range(N)], pa.list_(pa.float32()))
    write_parquet(imported / "more.parquet", columns)
    options = ("--column", "lyric_embedding=text/a", "--column", "concept_embedding=concept/b")
    command = ("import", "more.parquet", *options, "--store", store_name, "--json")
    if store_name.endswith("h5"):
        run_cli("convert", "features.zarr", store_name)
    tree = type(open_store(store_name).tree)
    run_cli(*command)
    whole, left = contents(store_name), [10**6]

    def killed(original):
        def write(*arguments, **options):
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            return original(*arguments, **options)

        return write

    for name in ("write", "create", "set_attributes", "delete"):
        monkeypatch.setattr(tree, name, killed(getattr(tree, name)))
    for stop in range(1, 60, 3):
        left[0] = 10**6
        store = open_store(store_name)
        for name in ("text/a", "concept/b"):
            store.delete_feature(name)
        left[0] = stop
        try:
            run_cli(*command)
        except Killed:
            left[0] = 10**6
            run_cli(*command)
        else:
            assert left[0] >= 0 and stop > 20
            break
        assert contents(store_name) == whole
    left[0] = 10**6
    features = json.loads(run_cli(*command).output)["features"]
    assert [feature["unchanged"] for feature in features] == [True, True]


def contents(store_name: str) -> dict[str, bytes] | list[str]:
    """Every byte of a Zarr store; every value of an HDF5 file, whose bytes tell its history."""
    if store_name.endswith("zarr"):
        return every_file(Path(store_name))
    tree = open_store(store_name).tree
    names = [f"features/{name}" for name in ("text/a", "concept/b")]
    arrays = [f"{name}/{array}" for name in names for array in tree.children(name)]
    return [f"{path}: {tree.read(path)!r}" for path in arrays]


def test_names_are_chosen_and_mistakes_in_them_explained(imported, run_cli):
    for arguments, told in (
        (["--column", "lyric=text/x"], "--column: no vectors of column 'lyric' are imported"),
        (["--column", "genre=text/x"], "genre holds string; vectors are lists of numbers"),
        (["--column", "lyric_embedding=text"], "a feature is named SLOT/NAME"),
        (["--column", "lyric_embedding"], "two names with = between them"),
        (["--flag", "lyric_embedding=there"], "no column 'there' for the flag of lyric_embedding"),
        (["--ids", "song"], "no column song to join it by"),
        (["--ids", "song_id"], "ids of song_id are there more than once"),
        (
            ["--dtype", "float32"],
            "text/lyric_embedding already. Keep both with --column lyric_embedding=text/NAME, or pass --replace",
        ),
        (["--column", "lyric_embedding=a/x", "--column", "concept_embedding=a/x"], "Two columns would become a/x"),
    ):
        assert told in run_cli("import", "training.parquet", *arguments, code=2).output, arguments
    columns = {"segment_id": pa.array(["x", "y"]), "clap": pa.array([[1.0], [2.0]])}
    write_parquet(imported / "strangers.parquet", columns)
    assert "could hold vectors: clap" in run_cli("import", "strangers.parquet", code=2).output
    output = run_cli("import", "strangers.parquet", "--column", "clap=audio/clap", code=2).output
    assert "none of its 2 ids (segment_id: 'x', …) is in the store ('s0', …)" in output
    assert open_store("features.zarr").features() == ["concept/concept_embedding", "text/lyric_embedding"]


def test_python_objects_are_never_unpickled(imported, run_cli):
    ids = np.array(IDS, object)
    np.savez(imported / "ids.npz", ids=ids, audio_embedding=np.ones((N, 2)))
    np.savez(imported / "vectors.npz", ids=IDS, audio_embedding=np.array([[1.0], [1.0, 2.0]] * (N // 2), object))
    for name, array in (("ids.npz", "ids"), ("vectors.npz", "audio_embedding")):
        output = run_cli("import", name, code=2).output
        assert f"{name}: {array} holds Python objects, which are never unpickled" in output


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.95])
@pytest.mark.parametrize("name", ["v.parquet", "v.h5", "v.npz"])
def test_files_that_are_cut_off_get_one_line(imported, run_cli, name, share):
    vectors = np.random.default_rng(0).normal(size=(N, 64))
    if name == "v.parquet":
        columns = {"ids": pa.array(IDS), "audio_embedding": pa.array(list(vectors))}
        write_parquet(imported / name, columns)
    else:
        {"v.h5": as_hdf5, "v.npz": as_npz}[name](imported / name, IDS, vectors, np.ones(N, bool))
    content = (imported / name).read_bytes()
    (imported / name).write_bytes(content[: int(share * len(content))])
    output = run_cli("import", name, "--ids", "ids" if name == "v.parquet" else "names", code=2).output
    assert name in output and len(output.strip().splitlines()) == 1, output


def test_a_file_without_groups_makes_no_store(project, run_cli):
    as_npz(project / "clap.npz", IDS, np.ones((N, 2)), np.ones(N, bool))
    output = run_cli("import", "clap.npz", "--ids", "names", code=2).output
    assert "no groups and labels to make a store of" in output and not (project / "features.zarr").exists()


def test_large_numbers_are_kept_in_float32(imported, run_cli):
    columns = {"id": pa.array(IDS), "audio_embedding": pa.array([[1e6, 2.0]] * N)}
    write_parquet(imported / "large.parquet", columns)
    assert "2 x float32" in run_cli("import", "large.parquet").output
    assert (open_store("features.zarr")["audio/audio_embedding"].vectors[:] == [1e6, 2.0]).all()


def test_no_row_is_a_python_object_on_its_way(tmp_path):
    """A row group is read in batches: what is in hand is a batch, not the column."""
    n, width = 5000, 64
    flat = pa.array(np.ones(n * width, np.float32))
    cells = pa.ListArray.from_arrays(np.arange(0, n * width + 1, width, dtype=np.int32), flat)
    write_parquet(tmp_path / "x.parquet", {"id": pa.array(range(n)), "x": cells}, row_group_size=n)
    parts = list(open_vectors(tmp_path / "x.parquet").vectors("x", None))
    assert len(parts) >= 5 and max(len(part.rows) for part in parts) <= 1024
    assert sum(len(part.rows) for part in parts) == n
    with pytest.raises(SourceError, match="neither parquet, HDF5 nor npz"):
        (tmp_path / "x.txt").write_text("x")
        open_vectors(tmp_path / "x.txt")
