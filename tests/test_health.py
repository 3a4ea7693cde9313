"""Degenerate features are noticed, healthy ones are left in peace; on made vectors, and through `cli inspect`."""

from __future__ import annotations

import csv
import json
import shutil
from contextlib import chdir
from pathlib import Path

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from cli import cli
from featurize.demo import make_demo
from stores import health
from stores.base import STRING
from stores.feature import Feature, Status
from stores.health import Finding, findings
from stores.inspect import summarize
from stores.memory_store import MemoryTree
from stores.store import Store
from tests.stores_contract import RECORD

N, D = 200, 64


def make_store(
    vectors: np.ndarray,
    *,
    inputs: np.ndarray | None = None,
    groups: np.ndarray | None = None,
    status: np.ndarray | None = None,
    chunk_rows: int = 64,
    dtype: type = np.float32,
    weights: dict[str, str] | None = None,
) -> Store:
    """`audio/toy` with these vectors. inputs: int (n,), equal for equal inputs. groups: int (n,), of two by default."""
    n = len(vectors)
    inputs = np.arange(1, n + 1) if inputs is None else inputs
    hashes = np.zeros((n, 16), np.uint8)
    hashes[:, :8] = np.asarray(inputs, np.int64)[:, None].view(np.uint8)
    status = np.full(n, Status.PRESENT, np.uint8) if status is None else status
    segments = {
        "id": np.array([f"s{row}" for row in range(n)], STRING),
        "group": np.array([f"g{group}" for group in (np.arange(n) // 2 if groups is None else groups)], STRING),
    }
    store = Store.create(MemoryTree(), segments, {}, {}, chunk_rows)
    feature = store.create_feature(
        "audio/toy", {**RECORD, "width": vectors.shape[1], "weights": weights or {}}, dtype=dtype
    )
    for chunk in feature.chunks():
        rows = slice(chunk.start, chunk.stop)
        feature.write_chunk(chunk, np.array(chunk), vectors[rows], status[rows], hashes[rows], [""] * len(chunk))
    return store


def look(vectors: np.ndarray, **facts) -> list[Finding]:
    store = make_store(vectors, **facts)
    return findings(store["audio/toy"], store.ids, store.groups)


def gaussian(n: int = N, width: int = D, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, width)).astype(np.float32)


def healthy(kind: str, n: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(n, D))
    if kind == "with a large mean":
        return vectors + rng.normal(0, 5, D)
    if kind == "of unit length":
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    if kind == "of low rank":
        return rng.normal(size=(n, 8)) @ rng.normal(size=(8, D)) + 0.1 * vectors
    if kind == "in groups":
        return np.repeat(rng.normal(size=(n // 10, D)), 10, axis=0) + 0.5 * vectors
    if kind == "of many scales":
        return vectors * np.exp(2 * rng.normal(size=D))
    if kind == "half zero":
        return np.maximum(vectors, 0)
    if kind == "exponential":
        return rng.exponential(size=(n, D))
    return vectors


KINDS = [
    "gaussian",
    "with a large mean",
    "of unit length",
    "of low rank",
    "in groups",
    "of many scales",
    "half zero",
    "exponential",
]


@pytest.mark.parametrize("n", [20, 100, 3000])
@pytest.mark.parametrize("kind", KINDS)
def test_healthy_vectors_are_left_in_peace(kind, n):
    for seed in range(5):
        assert look(healthy(kind, n, seed), dtype=np.float16, chunk_rows=1024) == []


def test_columns_that_are_mostly_one_value_are_no_cause_for_alarm():
    """As counts of rare instruments are: their median deviation is 0."""
    for seed in range(5):
        vectors = gaussian(seed=seed)
        vectors[:, ::2] = np.random.default_rng(seed).poisson(0.2, (N, D // 2))
        assert look(vectors) == []


def test_narrow_vectors_may_be_short_by_chance():
    for seed in range(5):
        kinds = {finding.kind for finding in look(np.maximum(gaussian(n=1000, width=8, seed=seed), 0))}
        assert "odd norms" not in kinds and "far vectors" not in kinds


def test_constant_columns_are_a_note_and_many_are_a_warning():
    vectors = gaussian()
    vectors[:, [3, 9]] = 0, 2.5
    (finding,) = look(vectors)
    assert (finding.kind, finding.severity) == ("constant columns", "note")
    assert (finding.count, finding.of, finding.examples) == (2, D, ["3", "9"])
    vectors[:, : D // 2] = 1
    (finding,) = look(vectors)
    assert (finding.severity, finding.count) == ("note", D // 2)  # without weights it may well be so
    (finding,) = look(vectors, weights={"sha256": "0"})
    assert (finding.severity, finding.count) == ("warning", D // 2)
    assert finding.message == "32 of 64 columns never vary, e.g. 0, 1, 2; check the encoder's options and weights."
    vectors[:, : D - 3] = 1
    (finding,) = look(vectors)
    assert finding.severity == "warning"


def test_a_column_that_only_absent_rows_vary_is_constant():
    """Absent rows read as zeros; they say nothing about the feature."""
    vectors = gaussian()
    vectors[:, 5] = 1
    status = np.full(N, Status.PRESENT, np.uint8)
    status[::3] = Status.ABSENT
    (finding,) = look(vectors, status=status)
    assert (finding.kind, finding.examples) == ("constant columns", ["5"])


def test_zero_vectors_of_present_rows():
    vectors = gaussian()
    vectors[[7, 70, 150]] = 0
    status = np.full(N, Status.PRESENT, np.uint8)
    status[[8, 9]] = Status.ABSENT, Status.FAILED
    (finding,) = look(vectors, status=status)
    assert (finding.kind, finding.severity) == ("zero vectors", "warning")
    assert (finding.count, finding.of, finding.examples) == (3, N - 2, ["s7", "s70", "s150"])
    assert finding.message.startswith("3 of 198 vectors (3 groups, e.g. 's7', 's70', 's150') are all zero")


def test_zero_vectors_do_not_hide_others():
    vectors = gaussian()
    vectors[::2] = 0
    vectors[1::10] = 0
    vectors[[13, 25]] *= 30
    assert [(finding.kind, finding.count) for finding in look(vectors)] == [("zero vectors", 120), ("odd norms", 2)]


def test_few_among_many_are_a_note():
    vectors = gaussian(n=3000)
    vectors[[7, 8]] = 0
    vectors[[100, 200, 300]] = vectors[100]
    assert [(finding.kind, finding.severity, finding.count) for finding in look(vectors)] == [
        ("zero vectors", "note", 2),
        ("equal vectors", "note", 3),
    ]


def test_equal_vectors_of_different_inputs():
    vectors = gaussian()
    vectors[[10, 90, 120, 121]] = vectors[10]
    vectors[[30, 31]] = vectors[30]  # one group, so a repeat of a song
    vectors[[50, 150]] = vectors[50]
    (finding,) = look(vectors)
    assert (finding.kind, finding.severity) == ("equal vectors", "warning")
    assert (finding.count, finding.of) == (6, N)
    assert finding.examples == ["s10", "s90", "s120"]  # of the vector that stands most often
    assert "4 of them one and the same" in finding.message


@pytest.mark.parametrize("same", ["inputs", "groups"])
def test_equal_vectors_of_equal_inputs_or_of_one_song_are_fine(same):
    vectors = gaussian()
    vectors[100:120] = vectors[:20]
    labels = np.arange(1, N + 1)
    labels[100:120] = labels[:20]
    assert look(vectors, **{same: labels}) == []


def test_an_unknown_input_is_not_taken_for_a_different_one():
    vectors = gaussian()
    vectors[1::2] = vectors[0]
    assert look(vectors, inputs=np.zeros(N)) == []


def test_one_vector_for_everything_in_each_song():
    """As when an encoder reads the whole file for each of its segments."""
    groups = np.arange(N) // 10
    (finding,) = look(gaussian(n=N // 10)[groups], groups=groups)
    assert (finding.kind, finding.severity, finding.count) == ("equal vectors", "warning", N)


def test_the_same_vector_everywhere():
    kinds = {finding.kind: finding for finding in look(np.repeat(gaussian(n=1), N, axis=0))}
    assert set(kinds) == {"constant columns", "equal vectors"}
    assert kinds["equal vectors"].count == N and kinds["constant columns"].count == D


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("factor", [1 / 20, 20])
def test_vectors_that_were_scaled(factor, offset):
    vectors = gaussian() + offset * gaussian(n=1, seed=1)
    rows = [5, 60, 61, 199]
    vectors[rows] *= factor
    (finding,) = look(vectors)
    assert (finding.kind, finding.severity, finding.count) == ("odd norms", "warning", 4)
    assert finding.examples == ["s5", "s60", "s61"] and "3 groups" in finding.message


def test_far_vectors_that_the_norm_does_not_show():
    """A large mean hides everything in the norm."""
    vectors = gaussian()
    vectors[[5, 60]] *= -6
    (finding,) = look(vectors + 1000)
    assert (finding.kind, finding.examples) == ("far vectors", ["s5", "s60"])


def test_one_odd_number_does_not_make_an_odd_row():
    vectors = gaussian()
    vectors[5, 3] = 60
    assert look(vectors) == []


def test_with_few_rows_nothing_can_be_told():
    vectors = np.zeros((health.MIN_ROWS, D), np.float32)
    assert look(vectors) != [] and look(vectors[1:]) == []
    status = np.full(len(vectors), Status.PRESENT, np.uint8)
    status[0] = Status.ABSENT
    assert look(vectors, status=status) == []


def degenerate() -> np.ndarray:
    vectors = gaussian(n=300)
    vectors[[9, 100, 280]] = vectors[9]
    vectors[[17, 150]] *= 30
    vectors[[30, 250]] *= 5
    vectors[:, 3] = 1
    vectors[[70, 71, 290]] = 0
    return vectors


def test_warnings_come_first():
    assert [(finding.kind, finding.severity) for finding in look(degenerate())] == [
        ("zero vectors", "warning"),
        ("equal vectors", "warning"),
        ("far vectors", "warning"),
        ("odd norms", "warning"),
        ("constant columns", "note"),
    ]


def test_chunks_and_blocks_make_no_difference_and_are_never_read_all_at_once(monkeypatch):
    expected = look(degenerate(), chunk_rows=1024)
    block_rows = []
    read = Feature.read_vectors

    def spy(feature, rows=None, status=None):
        block_rows.append(feature.n_segments if rows is None else len(rows))
        return read(feature, rows, status)

    monkeypatch.setattr(Feature, "read_vectors", spy)
    monkeypatch.setattr(health, "BLOCK_BYTES", 4 * D * 50)
    for chunk_rows in (7, 64):
        assert look(degenerate(), chunk_rows=chunk_rows) == expected
    assert max(block_rows) == 64


def test_medians_from_a_sample_find_the_same(monkeypatch):
    expected = look(degenerate())
    monkeypatch.setattr(health, "SAMPLE_ROWS", 50)
    assert look(degenerate()) == expected


@settings(max_examples=60, deadline=None)
@given(
    rows=st_numpy.arrays(
        np.float32,
        st.tuples(st.integers(1, 30), st.integers(1, 5)),
        elements=st.sampled_from([0.0, 1.0, -1.0, 1e-30, 1e4, 65504.0, 1e30, -1e30]),
    ),
    n_repeats=st.integers(1, 3),
)
def test_any_finite_vectors_can_be_looked_at(rows, n_repeats):
    vectors = np.tile(rows, (n_repeats, 1))
    for finding in look(vectors):
        assert 0 < finding.count <= finding.of and 0 < len(finding.examples) <= 3 and "\n" not in finding.message


def test_the_summary_lists_them_and_damage_is_one_of_them(monkeypatch):
    store = make_store(degenerate())
    (zero, *_) = summarize(store)["features"]["audio/toy"]["warnings"]
    assert zero == {
        "kind": "zero vectors",
        "severity": "warning",
        "count": 3,
        "of": 300,
        "examples": ["s70", "s71", "s290"],
        "message": zero["message"],
    }
    feature = store["audio/toy"]  # a chunk whose file is gone reads as zeros
    store.tree.write(feature.array_path("vectors"), 0, np.zeros((64, feature.width), feature.dtype))
    stored_chunks = store.tree.stored_chunks
    monkeypatch.setattr(
        store.tree, "stored_chunks", lambda path: set() if path.startswith("features/") else stored_chunks(path)
    )
    (damage,) = summarize(store)["features"]["audio/toy"]["warnings"]
    assert damage["kind"] == "damaged" and "rows 0 to 63: the vectors are gone" in damage["message"]


@pytest.fixture(scope="module")
def healthy_project(tmp_path_factory) -> Path:
    """A folder with `songs/`, and their store, of which `cli inspect` finds nothing to say."""
    folder = tmp_path_factory.mktemp("healthy")
    make_demo(folder / "songs", n_songs=40, segments_per_song=2, segment_seconds=1.0, seed=2)
    with chdir(folder):
        for line in ("ingest songs", "featurize --encoder mel_stats --workers 0", "inspect"):
            result = CliRunner().invoke(cli, line.split())
            assert result.exit_code == 0, result.output
    assert "warning" not in result.output
    return folder


@pytest.mark.parametrize("gain", [2.0**15, 2.0**-15], ids=["too loud", "too quiet"])
def test_a_song_at_the_wrong_scale_is_named_by_inspect(healthy_project, run_cli, tmp_path, monkeypatch, gain):
    """16-bit integers that were never divided by 32,768, and some that were divided twice."""
    monkeypatch.chdir(shutil.copytree(healthy_project, tmp_path / "project"))
    table = Path("songs/segments.csv")
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    song = next(
        row["group"]
        for row, other in zip(rows[::2], rows[1::2], strict=True)
        if row["audio_path"] and other["audio_path"]
    )
    samples, rate_hz = soundfile.read(table.parent / "audio" / f"{song}.flac")
    soundfile.write(table.parent / "audio" / f"{song}.wav", samples * gain, rate_hz, subtype="FLOAT")
    table.write_text(table.read_text("utf-8").replace(f"audio/{song}.flac", f"audio/{song}.wav"), "utf-8")
    run_cli("ingest", table.parent)
    run_cli("featurize", "--encoder", "mel_stats", "--workers", "0")
    (warning, *notes) = json.loads(run_cli("inspect", "--json").output)["features"]["audio/mel_stats"]["warnings"]
    assert (warning["kind"], warning["severity"]) == ("far vectors", "warning"), notes
    assert warning["examples"] == [row["segment_id"] for row in rows if row["group"] == song]
    assert warning["count"] == 2 and f"    warning: {warning['message']}\n" in run_cli("inspect").output
