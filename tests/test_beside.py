"""The threads beside the model's: order, bounds, errors, and that none outlives its block."""

from __future__ import annotations

import threading

import pytest

from featurize.beside import Behind, ahead, side_by_side
from featurize.workers import Preparer


def names() -> set[str]:
    return {thread.name for thread in threading.enumerate()}


def test_items_come_in_order_and_no_further_ahead_than_allowed():
    taken = []

    def numbers():
        for number in range(20):
            taken.append(number)
            yield number

    with ahead(numbers(), 2) as items:
        for number in items:
            assert len(taken) <= number + 1 + 2 + 1  # given, waiting, in hand
    assert taken == list(range(20)) and "ahead" not in names()


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_what_is_raised_ahead_comes_after_what_was_before_it(error):
    def numbers():
        yield 1
        raise error("two")

    given = []
    with pytest.raises(error, match="two"), ahead(numbers(), 3) as items:
        for number in items:
            given.append(number)
    assert given == [1]


def test_a_block_that_is_left_early_leaves_no_thread():
    closed = threading.Event()

    def forever():
        try:
            while True:
                yield 0
        finally:
            closed.set()

    with pytest.raises(RuntimeError, match="enough"), ahead(forever(), 1) as items:
        next(items)
        raise RuntimeError("enough")
    assert "ahead" not in names() and closed.wait(60)


class Waits:
    """Module level: it travels to another process."""

    def prepare(self, raw):
        threading.Event().wait(60)


def test_leaving_does_not_wait_for_a_worker_that_is_not_done():
    preparer = Preparer(Waits(), workers=1)
    begun = threading.Event()

    def jobs():
        for number in range(20):
            begun.set()
            yield number, b""

    with pytest.raises(KeyboardInterrupt), ahead(preparer.run(jobs()), 1) as items, preparer:
        assert begun.wait(60) and items
        raise KeyboardInterrupt
    assert "ahead" not in names()


def test_calls_are_made_in_order_and_all_of_them():
    made: list[int] = []
    with Behind(3) as behind:
        for number in range(50):
            behind(made.append, number)
    assert made == list(range(50))


def test_the_first_error_is_raised_and_nothing_is_called_after_it():
    made: list[int] = []

    def fail():
        raise ValueError("full")

    with pytest.raises(ValueError, match="full"), Behind(3) as behind:
        behind(fail)
        for number in range(10):
            behind(made.append, number)
    assert made == []
    with pytest.raises(ValueError, match="full"), Behind(1) as behind:
        behind(fail)
    with pytest.raises(ValueError, match="full"), Behind(1) as behind:
        behind(fail)
        raise KeyboardInterrupt  # what was not written matters more


@pytest.mark.parametrize("n_threads", [1, 2, 3])
def test_side_by_side_keeps_the_order_and_what_came_before_an_error(n_threads):
    def items():
        yield from range(7)
        raise KeyboardInterrupt

    begun, seen = [], []
    with pytest.raises(KeyboardInterrupt):
        for pair in side_by_side(items(), lambda n: 10 * n, n_threads, lambda: begun.append(1)):
            seen.append(pair)
    assert seen == [(n, 10 * n) for n in range(7)]
    assert len(begun) == 0 if n_threads == 1 else 1 <= len(begun) <= n_threads


def test_side_by_side_calls_at_once():
    """Each waits for the other: one after another they would wait for ever."""
    both = threading.Barrier(2)
    assert [made for _, made in side_by_side([1, 2], lambda _: both.wait(30) >= 0, 2, lambda: None)] == [True, True]
