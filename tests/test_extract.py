"""The extraction loop: what is encoded, copied, left alone, failed; and identities 1 and 5 of the design."""

from __future__ import annotations

import os
import sys
from threading import Event

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_info

from featurize.audit import audit
from featurize.encode import batches
from featurize.encoders.base import Encoded, stack_vectors
from featurize.extract import extract
from featurize.limits import Limits
from featurize.segments import RawAudio, UnreadableInput
from featurize.workers import Failure, Preparer
from stores.errors import DiskError
from stores.feature import Status
from stores.memory_store import MemoryTree
from tests.stores_contract import make_store
from tests.toys import ToyEncoder, ToySource, toy_contents, toy_feature


def contents_of(feature):
    return (
        feature.vectors[:].tobytes(),
        feature.status.tobytes(),
        feature.read_input_hashes().tobytes(),
        feature.failures.tolist(),
    )


def test_every_row_ends_in_the_status_that_fits_it():
    feature = toy_feature(MemoryTree(), 6, chunk_rows=4)
    source = ToySource([[1, 2], None, [-1], [], [13], UnreadableInput("no such file")])
    done = extract(feature, ToyEncoder(), source)
    assert feature.status.tolist() == [
        Status.PRESENT,
        Status.ABSENT,
        Status.FAILED,
        Status.ABSENT,
        Status.FAILED,
        Status.FAILED,
    ]
    assert feature.failures.tolist() == ["", "", "negative audio", "", "RuntimeError: unlucky", "no such file"]
    np.testing.assert_allclose(feature.vectors[0], [2.75, 2.75, 2.75])
    assert not feature.vectors[1:].any()
    assert (done.present, done.absent, done.failed, done.encoded) == (1, 2, 3, 1)
    assert [reason for _, reason in done.new_failures] == ["negative audio", "RuntimeError: unlucky", "no such file"]


def test_a_second_run_encodes_nothing_and_writes_nothing(monkeypatch):
    feature = toy_feature(MemoryTree(), 40, chunk_rows=8)
    source = ToySource(toy_contents(40))
    extract(feature, ToyEncoder(), source)
    before = contents_of(feature)
    monkeypatch.setattr(feature, "write_chunk", lambda *_: pytest.fail("wrote"))
    again = ToyEncoder()
    done = extract(feature, again, source)
    assert again.prepared == [] and done.unchanged == 40 and done.encoded == done.copied == 0
    assert contents_of(feature) == before


def test_equal_inputs_are_encoded_once_within_and_across_chunks():
    encoder = ToyEncoder()
    feature = toy_feature(MemoryTree(), 9, chunk_rows=4)
    done = extract(feature, encoder, ToySource([[1], [2], [1], [1], [2], [3], [3], [1], [4]]))
    assert len(encoder.prepared) == 4 and done.encoded == 4 and done.copied == 5
    np.testing.assert_array_equal(feature.vectors[:, 0], [1.5, 3, 1.5, 1.5, 3, 4.5, 4.5, 1.5, 6])


class Framed(ToyEncoder):
    """Costs its number of samples; frames are the vector times 1, 2, …, as many as there are samples."""

    has_frames = True

    def prepare(self, raw):
        vector = super().prepare(raw)
        return None if vector is None else (vector, len(raw.samples) // 4)

    def cost(self, item):
        return item[1]

    def collate(self, items):
        return {**stack_vectors([vector for vector, _ in items]), "n": torch.tensor([n for _, n in items])}

    def forward(self, batch):
        pooled = self.linear(batch["vectors"])
        mask = torch.arange(int(batch["n"].max())) < batch["n"][:, None]
        return Encoded(pooled, pooled[:, None] * (1 + torch.arange(mask.shape[1]))[:, None], mask)


def test_frames_are_pooled_stored_and_copied():
    store = make_store(MemoryTree(), 5, 2)
    feature = store.create_feature("audio/toy", Framed().record.to_dict(), frames=2)
    extract(feature, Framed(), ToySource([[2], [1, 1, 1, 1], [2], None, [-1]]))
    assert feature.n_frames.tolist() == [1, 2, 1, 0, 0]
    np.testing.assert_array_equal(feature.frames[:, :, 0], [[3, 0], [3 * 1.5, 3 * 3.5], [3, 0], [0, 0], [0, 0]])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 50), max_size=30), st.integers(1, 120), st.integers(1, 9), st.integers(0, 30))
def test_batches_keep_the_budget_lose_nothing_and_form_again_from_what_is_left(costs, budget, most, done):
    class Costly(ToyEncoder):
        def cost(self, item):
            return item

    ready = list(enumerate(costs))
    Costly.batch_budget = budget
    formed = list(batches(ready, Costly(), most))
    assert sorted(row for batch in formed for row, _ in batch) == [row for row, _ in ready]
    for batch in formed:
        dearest = max(cost for _, cost in batch)
        assert len(batch) <= most and (len(batch) == 1 or dearest * len(batch) <= budget)
    left = {row for batch in formed[done:] for row, _ in batch}
    assert list(batches([job for job in ready if job[0] in left], Costly(), most)) == formed[done:]


def test_a_batch_too_large_for_memory_is_halved():
    sizes = []

    class Small(ToyEncoder):
        def forward(self, batch):
            sizes.append(len(batch["vectors"]))
            if len(batch["vectors"]) > 2 or (batch["vectors"][:, 2] == 5).any():
                raise torch.OutOfMemoryError("too much")
            return super().forward(batch)

    feature = toy_feature(MemoryTree(), 5, chunk_rows=8)
    extract(feature, Small(), ToySource([[1], [2], [3], [4], [5]]))
    assert feature.status.tolist() == [1, 1, 1, 1, 3] and sizes[0] == 5
    assert feature.failures[4] == "out of memory with this row alone"


def test_an_audit_passes_what_is_right_and_finds_what_is_not():
    source = ToySource(toy_contents(40))
    feature = toy_feature(MemoryTree(), 40, chunk_rows=16)
    extract(feature, ToyEncoder(), source)
    found = audit(feature, ToyEncoder(), source, k=10)
    assert found.passed and found.rows == 10 and found.stored <= 2**-11 and found.batches <= 1e-6
    source.contents[0] = [99]
    assert audit(feature, ToyEncoder(), source, k=40).changed == 1
    other = ToyEncoder()
    torch.nn.init.constant_(other.linear.weight, 0.6)
    assert not audit(feature, other, source, k=10).passed

    class Neighbourly(ToyEncoder):
        def forward(self, batch):
            return Encoded(super().forward(batch).pooled + 0.01 * batch["vectors"].mean(0))

    found = audit(feature, Neighbourly(), source, k=10)
    assert not found.passed and found.batches > 1e-3


def test_what_changed_is_encoded_again_and_nothing_else():
    source = ToySource([[1], [2], [3], [4], [5]])
    feature = toy_feature(MemoryTree(), 5, chunk_rows=2)
    extract(feature, ToyEncoder(), source)
    source.contents[3] = [7]
    source.contents[0] = None
    encoder = ToyEncoder()
    done = extract(feature, encoder, source)
    assert len(encoder.prepared) == 1 and done.encoded == 1 and done.unchanged == 3
    np.testing.assert_array_equal(feature.vectors[:, 0], [0, 3, 4.5, 10.5, 7.5])
    assert feature.status[0] == Status.ABSENT


def test_a_changed_row_may_become_what_another_was():
    """Row 0 takes row 1's input while row 1 takes a new one: the copy is of the old vector, not of the new."""
    source = ToySource([[1], [2]])
    feature = toy_feature(MemoryTree(), 2, chunk_rows=2)
    extract(feature, ToyEncoder(), source)
    source.contents = [[2], [9]]
    extract(feature, ToyEncoder(), source)
    np.testing.assert_array_equal(feature.vectors[:, 0], [3, 13.5])


def test_failed_rows_are_tried_again_on_request_or_when_they_change():
    source = ToySource([[-1], [-2]])
    feature = toy_feature(MemoryTree(), 2, chunk_rows=2)
    extract(feature, ToyEncoder(), source)
    for retry, expected in ((False, 0), (True, 2)):
        encoder = ToyEncoder()
        extract(feature, encoder, source, retry_failed=retry)
        assert len(encoder.prepared) == expected
    source.contents[0] = [5]
    extract(feature, ToyEncoder(), source)
    assert feature.status.tolist() == [Status.PRESENT, Status.FAILED] and feature.failures[0] == ""


def test_an_item_that_breaks_the_batch_fails_alone():
    class Picky(ToyEncoder):
        def forward(self, batch):
            if (batch["vectors"][:, 2] == 2).any():
                raise RuntimeError("cannot take a 2")
            return super().forward(batch)

    feature = toy_feature(MemoryTree(), 4, chunk_rows=4)
    extract(feature, Picky(), ToySource([[1], [2], [3], [4]]))
    assert feature.status.tolist() == [1, 3, 1, 1] and feature.failures[1] == "RuntimeError: cannot take a 2"


def test_nan_from_an_encoder_is_a_failed_row_never_a_vector():
    class Broken(ToyEncoder):
        def forward(self, batch):
            encoded = super().forward(batch)
            encoded.pooled[batch["vectors"][:, 2] == 2] = torch.nan
            return encoded

    feature = toy_feature(MemoryTree(), 3, chunk_rows=4)
    extract(feature, Broken(), ToySource([[1], [2], [3]]))
    assert feature.status.tolist() == [1, 3, 1] and "NaN" in feature.failures[1]
    assert np.isfinite(feature.vectors[:]).all()


def test_rows_are_saved_while_their_chunk_is_unfinished():
    class Stopped(ToySource):
        def raw(self, row):
            if row == 7:
                raise KeyboardInterrupt
            return super().raw(row)

    class FourAtATime(ToyEncoder):
        sort_rows = 4

    contents = [[1], [2], [1], [3], None, [4], [2], [5], [6], [1]]
    feature = toy_feature(MemoryTree(), 10, chunk_rows=10)
    with pytest.raises(KeyboardInterrupt):
        extract(feature, FourAtATime(), Stopped(contents), batch_size=2, save_every_seconds=0)
    # rows 5 and 7 were to share a block; row 6 is a copy of row 1
    assert feature.status.tolist() == [1, 1, 1, 1, 2, 0, 1, 0, 0, 0]
    encoder = FourAtATime()
    done = extract(feature, encoder, ToySource(contents))
    assert len(encoder.prepared) == 3 and (done.encoded, done.copied, done.unchanged) == (3, 1, 6)
    np.testing.assert_array_equal(feature.vectors[:, 0], [1.5, 3, 1.5, 4.5, 0, 6, 3, 7.5, 9, 1.5])


def test_progress_counts_every_row():
    seen = []
    feature = toy_feature(MemoryTree(), 7, chunk_rows=3)
    extract(feature, ToyEncoder(), ToySource(toy_contents(7)), progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (7, 7) and sorted(seen) == seen


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1000),
    n=st.integers(1, 30),
    chunk_rows=st.integers(1, 12),
    batch_size=st.integers(1, 9),
)
def test_stored_vectors_are_what_the_encoder_says_whatever_the_chunks_and_batches(seed, n, chunk_rows, batch_size):
    """Identity 1: stored vector = encoder(collate([prepare(segment)]))."""
    source = ToySource(toy_contents(n, seed))
    feature = toy_feature(MemoryTree(), n, chunk_rows)
    extract(feature, ToyEncoder(), source, batch_size=batch_size)
    encoder = ToyEncoder()
    for row in range(n):
        if feature.status[row] == Status.PRESENT:
            expected = encoder(encoder.collate([encoder.prepare(source.raw(row))])).pooled[0]
            np.testing.assert_array_equal(feature.vectors[row], expected.detach().numpy().astype(np.float16))


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1000),
    stops=st.lists(st.integers(1, 40), max_size=4),
    save_every_seconds=st.sampled_from([0.0, 1e9]),
    sort_rows=st.integers(1, 8),
)
def test_interrupted_at_any_row_and_run_again_is_the_same_as_never_interrupted(
    seed, stops, save_every_seconds, sort_rows
):
    """Identity 5, with exceptions; `test_kill.py` has the signals."""

    class Blocks(ToyEncoder):
        pass

    Blocks.sort_rows = sort_rows
    contents = toy_contents(30, seed)
    whole = toy_feature(MemoryTree(), 30, chunk_rows=7)
    extract(whole, ToyEncoder(), ToySource(contents))
    feature = toy_feature(MemoryTree(), 30, chunk_rows=7)

    class Interrupted(ToySource):
        def __init__(self, stop):
            super().__init__(contents)
            self.left = stop

        def raw(self, row):
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt
            return super().raw(row)

    for stop in stops:
        try:
            extract(feature, Blocks(), Interrupted(stop), batch_size=3, save_every_seconds=save_every_seconds)
        except KeyboardInterrupt:
            pass
    extract(feature, ToyEncoder(), ToySource(contents))
    assert contents_of(feature) == contents_of(whole)


class Deadly(ToyEncoder):
    """Dies, hangs, or works, as the first sample says. Module level: it travels to other processes."""

    def prepare(self, raw):
        import os
        import time

        first = np.frombuffer(raw.samples, "<f4")[0]
        if first == 66:
            os._exit(9)
        if first == 77:
            time.sleep(60)
        if first == 88:
            np.ones(2**28)  # 2 GiB
        return super().prepare(raw)


def test_worker_processes_give_the_same_and_survive_decoders_that_die_hang_or_take_memory():
    rows = [[1], [66], [2], [77], [-1], [3], [88]]
    raws = [(row, RawAudio(samples=np.asarray(x, "<f4").tobytes(), sample_rate_hz=1)) for row, x in enumerate(rows)]
    with Preparer(Deadly(), workers=2, limits=Limits(row_seconds=3, row_gib=1)) as preparer:
        outcomes = dict(preparer.run(iter(raws)))
        assert list(outcomes) == [0, 1, 2, 3, 4, 5, 6]  # in order
    assert "died" in outcomes[1].reason and "within 3 s" in outcomes[3].reason
    assert outcomes[4] == Failure("negative audio")
    if sys.platform == "linux":
        assert outcomes[6] == Failure("out of memory while preparing; at most 1 GiB are given to a row")
    np.testing.assert_array_equal([outcomes[row][0] for row in (0, 2, 5)], [1, 2, 3])


class Credentials:
    """What a worker process finds in its environment. Module level: it travels there."""

    def prepare(self, raw):
        return [os.environ.get(name) for name in ("AWS_ACCESS_KEY_ID", "AWS_SESSION_TOKEN")]


@pytest.mark.parametrize("light", [False, True])
def test_workers_have_the_environment_of_now_and_not_of_when_their_server_was_started(monkeypatch, light):
    """As in a notebook, where credentials are set after a first run."""
    monkeypatch.setenv("AWS_SESSION_TOKEN", "old")
    with Preparer(Credentials(), workers=1) as preparer:  # the first of a process starts the server
        list(preparer.run([("row", object())]))
    monkeypatch.delenv("AWS_SESSION_TOKEN")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "new")
    with Preparer(Credentials(), workers=1, light=light) as preparer:
        assert dict(preparer.run([("row", object())])) == {"row": ["new", None]}


class Threads:
    """How many threads a product of numpy's would take. Module level: it travels to other processes."""

    def prepare(self, raw):
        return max(library["num_threads"] for library in threadpool_info())


def test_a_worker_takes_one_core(monkeypatch):
    monkeypatch.setattr("featurize.workers._has_server", False)  # a process that has the environment from its start
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    with Preparer(Threads(), workers=1, light=True) as preparer:
        assert dict(preparer.run([("row", object())])) == {"row": 1}


def test_the_number_of_workers_changes_no_byte():
    contents = toy_contents(40, 3)
    stores = []
    for workers in (0, 2):
        feature = toy_feature(MemoryTree(), 40, chunk_rows=16)
        extract(feature, ToyEncoder(), ToySource(contents), workers=workers)
        stores.append(contents_of(feature))
    assert stores[0] == stores[1]


def test_what_equals_an_input_that_is_still_under_way_is_not_encoded_again():
    """Across chunks: while the first of each is being encoded the rows of the next chunk are found already."""

    class Slow(ToyEncoder):
        def forward(self, batch):
            assert looked_at.wait(60)
            return super().forward(batch)

    class Noted(ToySource):
        def raw(self, row):
            if row == 5:
                looked_at.set()
            return super().raw(row)

    looked_at = Event()
    encoder = Slow()
    feature = toy_feature(MemoryTree(), 6, chunk_rows=3)
    done = extract(feature, encoder, Noted([[1], [-1], [], [1], [-1], []]))
    assert len(encoder.prepared) == 3 and (done.encoded, done.copied) == (1, 1)
    assert feature.status.tolist() == [1, 3, 2] * 2 and feature.failures[4] == "negative audio"
    np.testing.assert_array_equal(feature.vectors[:, 0], [1.5, 0, 0] * 2)


def test_equal_inputs_fail_together_now_later_and_when_they_are_tried_again():
    feature = toy_feature(MemoryTree(), 4, chunk_rows=2)
    source = ToySource([[-1], [2], [3], None])
    extract(feature, ToyEncoder(), source)
    source.contents[3] = [-1]
    encoder = ToyEncoder()
    extract(feature, encoder, source)
    assert encoder.prepared == [] and feature.failures.tolist() == ["negative audio", "", "", "negative audio"]
    again = ToyEncoder()
    extract(feature, again, source, retry_failed=True)
    assert len(again.prepared) == 1 and feature.status.tolist() == [3, 1, 1, 3]


def test_a_write_that_fails_stops_the_run_and_loses_nothing_that_was_written(monkeypatch):
    feature = toy_feature(MemoryTree(), 12, chunk_rows=2)
    source = ToySource([[n] for n in range(1, 13)])
    original, writes = feature.write_chunk, []

    def full(chunk, *arguments):
        writes.append(chunk)
        if len(writes) == 3:
            raise DiskError("no space left")
        original(chunk, *arguments)

    monkeypatch.setattr(feature, "write_chunk", full)
    with pytest.raises(DiskError, match="no space left"):
        extract(feature, ToyEncoder(), source)
    assert len(writes) == 3 and feature.status.tolist() == [1] * 4 + [0] * 8
    extract(feature, ToyEncoder(), source)
    np.testing.assert_array_equal(feature.vectors[:, 0], 1.5 * np.arange(1, 13))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_what_the_cpu_gives():
    contents = toy_contents(40, 3)
    stores = []
    for device in ("cpu", "cuda"):
        feature = toy_feature(MemoryTree(), 40, chunk_rows=16)
        extract(feature, ToyEncoder().to(device), ToySource(contents), batch_size=3)
        stores.append(feature.vectors[:])
    np.testing.assert_allclose(*stores, rtol=2**-10)
