"""A store in object storage: the contract of every store, and what only storage behind a network can suffer."""

from __future__ import annotations

import pytest

from stores.backends import new_tree
from stores.object_store import ObjectTree
from tests.object_storage import bucket, running_storage, storage  # noqa: F401 (fixtures)
from tests.stores_contract import TreeContract


class TestObjects(TreeContract):
    @pytest.fixture
    def tree(self, bucket):  # noqa: F811
        with new_tree(bucket / "features.zarr"):
            pass
        return ObjectTree(bucket / "features.zarr")

    def reopen(self, tree):
        return ObjectTree(tree.path)
