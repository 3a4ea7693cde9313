"""A store in object storage: the contract of every store, and what only storage behind a network can suffer."""

from __future__ import annotations

import itertools

import pytest

from stores import objects, open_store
from stores.backends import new_tree
from stores.object_store import ObjectTree
from stores.store import Store
from stores.verify import verify
from tests.object_storage import Fault, answers, every_object, failing, lost_answer, reset
from tests.stores_contract import RECORD, TreeContract, make_store, write
from tests.test_kill import every_file


class TestObjects(TreeContract):
    @pytest.fixture
    def tree(self, bucket):
        with new_tree(bucket / "features.zarr"):
            pass
        return ObjectTree(bucket / "features.zarr")

    def reopen(self, tree):
        return ObjectTree(tree.path)


def small_store(path) -> Store:
    with new_tree(path) as tree:
        make_store(tree)
    store = open_store(path)
    feature = store.create_feature("audio/toy", RECORD)
    for chunk in feature.chunks()[:2]:
        write(feature, chunk, list(chunk))
    return store


def every_nth(n: int, faults: list[Fault]):
    """Each n-th request, whatever it is, meets the next of the faults."""
    count = itertools.count(1)
    return lambda method, path: faults[number // n % len(faults)] if (number := next(count)) % n == 0 else None


@pytest.fixture
def impatient(monkeypatch):
    """Pauses of milliseconds; as many tries as ever."""
    monkeypatch.setattr(objects, "FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(objects, "LONGEST_PAUSE_SECONDS", 0.01)
    objects.forget_clients()
    yield
    objects.forget_clients()


FAULTS = {
    "500": answers("500 Internal Server Error", "InternalError"),
    "503": answers("503 Slow Down", "SlowDown"),
    "reset": reset,
    "lost answer": lost_answer,
}


@pytest.mark.parametrize("name", [*FAULTS, "all of them"])
def test_faults_of_every_kind_cost_no_byte(storage, bucket, impatient, tmp_path, name):
    small_store(tmp_path / "features.zarr")
    faults = [FAULTS[name]] if name in FAULTS else list(FAULTS.values())
    with failing(storage, every_nth(3, faults)):
        store = small_store(bucket / "features.zarr")
        assert store["audio/toy"].present.sum() == 8 and list(verify(store)) == []
    assert every_object(bucket) == {f"features.zarr/{k}": v for k, v in every_file(tmp_path / "features.zarr").items()}
