"""Items come whole from the workers, whichever way their arrays take."""

from __future__ import annotations

import os
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from featurize import handover
from featurize.handover import FEWEST_BYTES, SLOT_BYTES, Packed, Slots, SlotWriter
from featurize.limits import Limits
from featurize.segments import UnreadableInput
from featurize.workers import AHEAD, Failure, Preparer

needs_a_file = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="this system has no files in memory")
LARGE = FEWEST_BYTES // 4 + 1  # numbers of float32


@pytest.fixture
def slots():
    made = Slots(2)
    yield made
    made.close()


def there_and_back(slots: Slots, item):
    slot = slots.take()
    return slots.unpack(SlotWriter(slots.address).pack(item, slot), slot)


def same(a, b) -> bool:
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


shapes = arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=40)
some_arrays = arrays.arrays(st.sampled_from([np.float32, np.int32, np.uint8, np.bool_]), shapes)
items = st.recursive(
    some_arrays, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner)
)


@given(items)
def test_every_item_comes_back_as_it_was(item):
    slots = Slots(1)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(handover, "FEWEST_BYTES", 0)  # also small ones by way of the file
            assert same(there_and_back(slots, item), item)
    finally:
        slots.close()


@needs_a_file
def test_what_is_large_does_not_travel_and_may_be_written_to(slots):
    item = {"samples": np.arange(LARGE, dtype=np.float32), "reversed": np.arange(LARGE)[::-1]}
    slot = slots.take()
    packed = SlotWriter(slots.address).pack(item, slot)
    assert isinstance(packed, Packed) and packed.arrays == [((LARGE,), np.float32)]  # the other is no one block
    assert len(pickle.dumps(packed.item["samples"])) < 100
    found = slots.unpack(packed, slot)
    assert same(found, item)
    found["samples"][0] = 5  # as if it had been made here


def test_what_is_small_or_too_large_travels_as_it_is(slots):
    writer, slot = SlotWriter(slots.address), slots.take()
    for item in (np.zeros(3), np.zeros(SLOT_BYTES + 1, np.uint8), None, Failure("no"), "text"):
        assert writer.pack(item, slot) is item


def test_without_a_slot_or_a_file_all_travels(slots):
    item = np.zeros(LARGE, np.float32)
    assert SlotWriter(slots.address).pack(item, None) is item
    assert SlotWriter(None).pack(item, 0) is item
    assert SlotWriter("/nowhere/at/all").pack(item, 0) is item
    assert slots.unpack(item, None) is item


@needs_a_file
def test_two_items_under_way_do_not_meet_and_a_slot_is_used_again(slots):
    writer = SlotWriter(slots.address)
    one, other = np.full(LARGE, 1, np.float32), np.full(LARGE, 2, np.float32)
    first, second = slots.take(), slots.take()
    assert first != second and slots.take() is None
    packed = [writer.pack(one, first), writer.pack(other, second)]
    kept = slots.unpack(packed[0], first)
    assert slots.take() == first
    writer.pack(np.zeros(LARGE, np.float32), first)
    assert same(kept, one) and same(slots.unpack(packed[1], second), other)


class Makes:
    """Prepares as many numbers as it is told; kills its process at 0."""

    def prepare(self, raw):
        if raw == 0:
            os.kill(os.getpid(), 9)
        if raw < 0:
            raise UnreadableInput("less than nothing")
        return np.arange(raw, dtype=np.float32)


def test_workers_hand_over_large_and_small_and_one_that_dies_harms_no_other():
    numbers = [LARGE, 3, 0, -1, *range(LARGE, LARGE + 3 * AHEAD), 0, 2 * LARGE]
    with Preparer(Makes(), workers=1, limits=Limits(row_seconds=30)) as preparer:
        found = dict(preparer.run(enumerate(numbers)))
    for row, number in enumerate(numbers):
        if number > 0:
            assert same(found[row], np.arange(number, dtype=np.float32))
        else:
            assert isinstance(found[row], Failure)
    assert found[3] == Failure("less than nothing") and "decoder died" in found[2].reason
