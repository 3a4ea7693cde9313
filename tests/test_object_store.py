"""A store in object storage: the contract of every store, and what only storage behind a network can suffer."""

from __future__ import annotations

import itertools
import json
import os
import re
import socket
import sys
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stores import claim, objects, open_store
from stores.backends import new_tree
from stores.claim import all_claimed, object_claimed
from stores.errors import RemoteError, StoreError
from stores.object_cache import Copies
from stores.object_store import ObjectTree
from stores.remote import parse_remote
from stores.store import Split, Store
from stores.verify import verify, verify_feature
from tests.object_storage import Fault, answers, cut, every_object, failing, lost_answer, reset
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


@pytest.mark.parametrize("names", [["lost answer"], [*FAULTS]], ids=str)
def test_faults_of_every_kind_cost_no_byte(storage, bucket, impatient, tmp_path, names):
    """Every third request meets one, conditional writes and claims not spared."""
    small_store(tmp_path / "features.zarr")
    with failing(storage, every_nth(3, [FAULTS[name] for name in names])):
        store = small_store(bucket / "features.zarr")
        with store.writing("audio/toy"):
            assert store["audio/toy"].present.sum() == 8 and list(verify(store)) == []
    assert every_object(bucket) == {f"features.zarr/{k}": v for k, v in every_file(tmp_path / "features.zarr").items()}


def test_an_answer_that_breaks_off_is_asked_for_again(storage, bucket, impatient):
    store = small_store(bucket / "features.zarr")
    key = "features.zarr/features/audio/toy/vectors/c/0/0"
    broken = iter([cut(bytes(bucket.objects.get(key).content))] * 3)
    with failing(storage, lambda method, path: next(broken, None) if path.endswith("vectors/c/0/0") else None):
        assert store["audio/toy"].vectors[:8].all()


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (answers("503 Slow Down", "SlowDown"), r"zarr.json: the storage answers 503 .*\(SlowDown\), after 10 retries"),
        (reset, r"zarr.json: the storage cannot be reached \(.*\), after 10 retries in"),
        (answers("403 Forbidden", "AccessDenied"), r"access denied \(AccessDenied\). Has the environment the cred"),
    ],
)
def test_what_does_not_pass_ends_in_one_line_after_so_many_tries(storage, bucket, impatient, run_cli, fault, said):
    small_store(bucket / "features.zarr")
    storage.requests.clear()
    with failing(storage, lambda method, path: fault):
        told = run_cli("verify", "--store", str(bucket / "features.zarr"), code=2).output
    assert re.search(said, told) and told.count("\n") == 1, told
    assert len(storage.requests) <= 2 * (1 + objects.RETRIES)  # of two objects that are asked for at once


def test_a_storage_that_refuses_writes_midway_leaves_whole_rows(storage, bucket, impatient):
    feature = small_store(bucket / "features.zarr")["audio/toy"]
    before = every_object(bucket)
    refuse = answers("403 Forbidden", "AccessDenied")
    with (
        failing(storage, lambda method, path: refuse if method == "PUT" and "/failure/" in path else None),
        pytest.raises(RemoteError, match="access denied"),
    ):
        write(feature, feature.chunks()[2], [8, 9])
    again = open_store(bucket / "features.zarr")
    assert again["audio/toy"].status.tolist() == [1] * 8 + [0, 0] and list(verify(again)) == []
    write(again["audio/toy"], feature.chunks()[2], [8, 9])
    assert again["audio/toy"].present.all() and before.items() <= every_object(bucket).items()


def test_no_bucket_no_store_no_server_no_package(storage, bucket, monkeypatch, impatient):
    with pytest.raises(RemoteError, match="There is no bucket s3://no-such-bucket"):
        open_store("s3://no-such-bucket/features.zarr")
    with pytest.raises(StoreError, match=f"There is no store at {bucket / 'x'}. `cli ingest DATA` makes one."):
        open_store(bucket / "x")
    with pytest.raises(StoreError, match="an HDF5 store is a file on a disk"), new_tree(bucket / "features.h5"):
        pass
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(RemoteError, match=r"cannot be reached \(.*\), after 10 retries"):
        open_store(bucket / "features.zarr")
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    with pytest.raises(RemoteError, match="there are no credentials. Set AZURE_STORAGE_ACCOUNT_NAME and"):
        open_store("az://container/features.zarr")
    monkeypatch.setitem(sys.modules, "obstore", None)
    objects.forget_clients()
    with pytest.raises(RemoteError, match=r"pip install 'triad-fusion\[cloud\]'"):
        open_store(bucket / "features.zarr")


# A listing that lags behind


def test_what_a_listing_does_not_show_is_neither_lost_nor_taken_for_missing(storage, bucket):
    path = bucket / "features.zarr"
    with new_tree(path) as tree:
        make_store(tree)
    storage.freeze_listings(bucket)
    store = open_store(path)
    feature = store.open_feature("audio/toy", RECORD)
    for chunk in feature.chunks():
        write(feature, chunk, list(chunk))
    store.write_split(Split("late", np.zeros(10, np.uint8), {"method": "grouped", "seed": 0}))
    again = open_store(path)
    assert again.features() == []  # the listing is that old
    assert again.open_feature("audio/toy", RECORD).present.all()  # and is not made anew
    assert again["audio/toy"].vectors[:].all() and again.split("late").parts.sum() == 0
    assert again.tree.stored_chunks("features/audio/toy/vectors") == {0, 1, 2}
    assert list(verify_feature(again, again["audio/toy"])) == []
    again["audio/toy"]._widen_to_float32()
    assert open_store(path)["audio/toy"].vectors[:].all()


def test_old_chunks_that_a_listing_hides_do_not_come_back(storage, bucket):
    tree = small_store(bucket / "features.zarr").tree
    storage.freeze_listings(bucket, nothing=True)
    tree.create("features/audio/toy/status", (10,), np.dtype(np.uint8), 4)
    assert not ObjectTree(tree.path).read("features/audio/toy/status").any()
    with new_tree(tree.path, replace=True) as new:
        make_store(new).create_feature("audio/toy", RECORD)
    feature = open_store(tree.path)["audio/toy"]
    assert not feature.status.any() and not feature.vectors[:].any()


# A new store


@pytest.mark.parametrize("n_before", [0, 5, 12])
def test_a_replacement_that_is_killed_anywhere_is_the_old_store_or_the_new_one(bucket, monkeypatch, n_before):
    path = bucket / "features.zarr"
    with new_tree(path) as tree:
        make_store(tree)
    left = itertools.count(n_before, -1)

    class Killed(BaseException):
        pass

    def dying(original):
        def call(*arguments):
            if replacing and next(left) <= 0:
                raise Killed
            return original(*arguments)

        return call

    replacing = False
    with monkeypatch.context() as patched:
        for name in ("delete", "copy"):
            patched.setattr(objects.Objects, name, dying(getattr(objects.Objects, name)))
        with pytest.raises(Killed), new_tree(path, replace=True) as tree:
            make_store(tree, n=3)
            replacing = True
    monkeypatch.setattr(claim, "DEAD_AFTER_SECONDS", -60.0)  # this process lives, the one that was killed does not
    store = open_store(path)
    assert store.n_segments == 3 and len(store.ids) == 3 and list(verify(store)) == []
    assert not [key for key in every_object(bucket) if ".replacing" in key]
    with new_tree(path, replace=True) as tree:
        make_store(tree, n=5)
    assert {key.partition("/")[0] for key in every_object(bucket)} == {"features.zarr"}
    assert open_store(path).n_segments == 5


def test_a_new_store_appears_whole_or_not_at_all(bucket, tmp_path):
    path = bucket / "features.zarr"
    with pytest.raises(KeyboardInterrupt), new_tree(path) as tree:
        make_store(tree)
        raise KeyboardInterrupt
    assert every_object(bucket) == {}
    with new_tree(path) as tree:
        make_store(tree)
    with pytest.raises(StoreError, match="--replace"), new_tree(path):
        pass
    bucket.objects.put("else/readme", b"precious")
    with pytest.raises(StoreError, match="not a store"), new_tree(bucket / "else", replace=True):
        pass


def test_a_store_that_is_deleted_midway_is_not_half_made_again(bucket):
    store = small_store(bucket / "features.zarr")
    bucket.objects.delete(list(every_object(bucket)))
    for attempt in (
        lambda: write(store["audio/toy"], range(0, 4), [0]),
        lambda: store.tree.set_attributes("labels", {}),
        lambda: store.tree.create("labels/x", (1,), np.dtype(np.uint8), 1),
    ):
        with pytest.raises(StoreError):
            attempt()
    assert every_object(bucket) == {}


# Two at once


def test_two_that_change_attributes_at_once_end_as_one_after_the_other(bucket, monkeypatch):
    one = small_store(bucket / "features.zarr").tree
    other = ObjectTree(one.path)
    one.create("labels/x", (2,), np.dtype(np.uint8), 2)
    original = objects.Objects.put_over

    def late(self, *arguments):
        monkeypatch.setattr(objects.Objects, "put_over", original)
        other.create("labels/x", (5,), np.dtype(np.uint8), 2)  # since it was read, the array became another
        return original(self, *arguments)

    monkeypatch.setattr(objects.Objects, "put_over", late)
    one.set_attributes("labels/x", {"a": 1})
    again = ObjectTree(bucket / "features.zarr")
    assert again.attributes("labels/x") == {"a": 1} and again.layout("labels/x")[0] == (5,)


def test_the_second_is_told_who_writes_and_takes_over_when_that_one_is_dead(bucket, monkeypatch):
    store, other = small_store(bucket / "features.zarr"), open_store(bucket / "features.zarr")
    with store.writing("audio/toy"):
        told = f"audio/toy is being written by process {os.getpid()} on"
        with pytest.raises(StoreError, match=told), other.writing("audio/toy"):
            pass
        with other.writing("audio/else"):
            pass
        with pytest.raises(StoreError, match="is being written"), all_claimed(other.tree.claims, []):
            pass
    assert not list(other.tree.claims.iterdir())
    key = (other.tree.claims / "audio%2Ftoy.claim").key
    for dead in ({"host": socket.gethostname(), "pid": 2**22 + 1}, {"host": "elsewhere", "pid": 1}):
        bucket.objects.put(key, json.dumps(dead).encode())
        monkeypatch.setattr(claim, "DEAD_AFTER_SECONDS", 120.0 if dead["pid"] > 1 else -60.0)
        with store.writing("audio/toy"):
            assert json.loads(bytes(bucket.objects.get(key).content))["pid"] == os.getpid()
    assert not list(other.tree.claims.iterdir())


def test_a_heart_beats_and_who_lost_its_claim_ends_with_an_error(storage, bucket, monkeypatch):
    monkeypatch.setattr(claim, "HEARTBEAT_SECONDS", 0.01)
    path = bucket / "audio.claim"
    with pytest.raises(StoreError, match="Another process has taken over audio/toy"):  # noqa: SIM117
        with object_claimed(path, "audio/toy"):
            first = bucket.objects.head(path.key).etag
            until = time.monotonic() + 60
            while bucket.objects.head(path.key).etag == first:
                assert time.monotonic() < until
            bucket.objects.put(path.key, b"{}")  # whoever took it for dead
            storage.requests.clear()
            while not any(request.startswith("GET") for request in list(storage.requests)):
                assert time.monotonic() < until  # the next beat has not seen it yet
    assert bytes(bucket.objects.get(path.key).content) == b"{}"  # and is left alone


# Paths


@given(st.lists(st.sampled_from(["a", "..", ".", "/", "b c", "ü%2F", "//", "../..", "s3:"]), max_size=6))
def test_a_path_below_a_root_stays_in_its_bucket_and_says_whether_it_left(parts):
    root = parse_remote("s3://bucket/songs")
    path = root / "/".join(parts)
    assert path.bucket == "s3://bucket" and ".." not in path.key.split("/") and not path.key.startswith("/")
    assert path.is_relative_to(root) == (path.key == "songs" or path.key.startswith("songs/"))


@pytest.mark.parametrize("url", ["s3://key:hush@bucket/x", "az://c/x?sig=hush", "gs://b/x#hush"])
def test_a_url_with_secrets_is_refused_and_not_repeated(run_cli, url):
    told = run_cli("verify", "--store", url, code=2).output
    assert "hush" not in told and "environment" in told and told.count("\n") == 1
    assert "names no bucket" in run_cli("verify", "--store", "s3://", code=2).output


# Local copies


def test_copies_spare_requests_and_follow_what_changes(storage, bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("TRIAD_CACHE", str(tmp_path / "cache"))
    writer = small_store(bucket / "features.zarr")["audio/toy"]

    def read() -> tuple[list[float], int]:
        """In a process of its own, as it were; and how many chunks of vectors were transferred."""
        storage.requests.clear()
        vectors = open_store(bucket / "features.zarr")["audio/toy"].vectors[:, 0].tolist()
        return vectors, sum(r.startswith("GET") and "/vectors/c/" in r for r in storage.requests)

    assert read() == ([1.0] * 8 + [0, 0], 2) and read() == ([1.0] * 8 + [0, 0], 0)
    write(writer, writer.chunks()[0], [1], 2.0)
    assert read() == ([1.0, 2.0, *[1.0] * 6, 0, 0], 1)
    for file in (tmp_path / "cache").rglob("??/*"):
        file.write_bytes(b"damaged" * 5)
    assert read() == ([1.0, 2.0, *[1.0] * 6, 0, 0], 2)


def test_copies_take_no_more_room_than_they_may(bucket, tmp_path):
    copies = Copies(tmp_path, limit_bytes=1000)
    for number in range(20):
        bucket.objects.put(f"song{number}.mid", bytes(300))
        path = copies.fetch(bucket / f"song{number}.mid", "old etag")
        assert path.read_bytes() == bytes(300) and path.suffix == ".mid"
    assert sum(file.stat().st_size for file in tmp_path.rglob("??/*")) <= 1000
    assert not list(tmp_path.rglob("*.partial"))
