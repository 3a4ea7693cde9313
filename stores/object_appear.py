"""A store in object storage appears when it is whole, and not before. There is no renaming: what `appear` does in a
folder is done here by copies within the storage, and a list of what must be copied.

A new store grows at `.NAME.partial`. When it is whole, the list of its keys is written to `.NAME.replacing`: from then
on it counts. The old one loses its `zarr.json` and everything else, the new objects are copied to `NAME`, `zarr.json`
last, and the list is deleted. Whoever is killed in between leaves the list, and the next that looks does it all again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress

from stores.claim import object_claimed
from stores.errors import RemoteError, StoreError
from stores.object_store import DOCUMENT, ObjectTree, new_group
from stores.remote import RemotePath


@contextmanager
def new_object_tree(path: RemotePath, *, replace: bool = False) -> Iterator[ObjectTree]:
    """A tree that appears at `path` when the block ends without error; until then nothing is there.

    Raises `StoreError` where `path` exists already and `replace` is false, or is no store, or another process makes it.
    """
    with _making(path):
        _finish(path)
        is_store = (path / DOCUMENT).is_file()
        if is_store and not replace:
            raise StoreError(f"{path} exists already. Pass --replace to make it anew, or give another path.")
        if not is_store and path.is_dir():
            raise StoreError(f"{path} exists and is not a store; it will not be replaced. Give another path.")
        partial, objects = _partial(path), path.objects
        _remove(partial)  # what an interrupted run left
        objects.put(f"{partial.key}/{DOCUMENT}", new_group())
        tree = ObjectTree(partial)
        tree.written.add(f"{partial.key}/{DOCUMENT}")
        try:
            yield tree
        except BaseException:
            with suppress(RemoteError):
                _remove(partial)
            raise
        contents = {
            "written": sorted(key.removeprefix(f"{partial.key}/") for key in tree.written),
            "never": [key.removeprefix(f"{partial.key}/") for key in tree.never_written()],
        }
        objects.put(_contents_of(path).key, json.dumps(contents).encode())
        _finish(path)
        _remove(partial)


def finish_object_replacement(path: RemotePath) -> None:
    """Where a process was killed while it put a new store in place: do it. Raises `StoreError` while one does it."""
    objects = path.objects
    _, contents = objects.many(objects.get, [f"{path.key}/{DOCUMENT}", _contents_of(path).key])
    if contents is not None:
        with _making(path):
            _finish(path)


def _finish(path: RemotePath) -> None:
    objects, partial = path.objects, _partial(path)
    found = objects.get(_contents_of(path).key)
    if found is None:
        return
    contents: dict[str, list[str]] = json.loads(bytes(found.content))
    document = f"{path.key}/{DOCUMENT}"
    objects.delete([document])
    old = {facts.key for facts in objects.all_below(path.key) if not facts.key.startswith(f"{path.key}/.claims/")}
    # also what a listing does not show: an older chunk must not be taken for one of the new store
    objects.delete(old | {f"{path.key}/{key}" for key in contents["never"]})
    written = [key for key in contents["written"] if key != DOCUMENT]
    objects.many(lambda key: objects.copy(f"{partial.key}/{key}", f"{path.key}/{key}"), written)
    objects.copy(f"{partial.key}/{DOCUMENT}", document)
    objects.delete([_contents_of(path).key])


def _making(path: RemotePath) -> AbstractContextManager[None]:
    return object_claimed(path.with_name(f".{path.name}.claim"), str(path))


def _partial(path: RemotePath) -> RemotePath:
    """Where the new store grows."""
    return path.with_name(f".{path.name}.partial")


def _contents_of(path: RemotePath) -> RemotePath:
    """What must be copied, and what must not be there."""
    return path.with_name(f".{path.name}.replacing")


def _remove(path: RemotePath) -> None:
    path.objects.delete(facts.key for facts in path.objects.all_below(path.key))
