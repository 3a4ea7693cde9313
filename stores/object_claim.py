"""A claim in object storage: an object that is made only where there is none. What claims are for: `stores.claim`.

Conventions
-----------
* Its key and JSON are those of a file, and a mark by which its holder knows it again.
* Its holder writes it anew as long as it lives, always over the version it wrote last. What has not been written for
  long is a dead process's, by the clocks of host and storage, and so is what says a process of this host that is gone.
* Who takes a dead one's claim writes over just that version: of two that try, one succeeds. A holder that had only
  slept finds its claim taken; its command then ends with an error, whatever it had written being whole rows.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable
from typing import Any

from stores.objects import Facts, Object
from stores.remote import RemotePath


class ObjectClaim:
    """path: of the object. holder: what it says (host, pid, …)."""

    def __init__(self, path: RemotePath, holder: dict[str, Any]):
        self._path, self._objects = path, path.objects
        self._mark = uuid.uuid4().hex
        self._content = json.dumps({**holder, "mark": self._mark}, ensure_ascii=False).encode()
        self._mine: Facts | None = None
        self.is_lost = False

    def take(self, dead_after_seconds: float, is_gone: Callable[[dict[str, Any]], bool]) -> dict[str, Any] | None:
        """`None` where it is ours now, else what another's says."""
        while True:
            self._mine = self._objects.put_new(self._path.key, self._content)
            if self._mine is not None:
                return None
            found = self._objects.get(self._path.key)
            if found is None:  # given back just now
                continue
            holder = _holder(found.content)
            if holder.get("mark") == self._mark:  # made by a try whose answer was lost
                self._mine = found.facts
                return None
            if _may_live(found, dead_after_seconds, is_gone):
                return holder
            self._mine = self._objects.put_over(self._path.key, self._content, found.facts)
            if self._mine is not None:
                return None

    def beat(self) -> None:
        """Write it anew, over the version that was written last; else it `is_lost`."""
        assert self._mine is not None
        content = json.dumps({**_holder(memoryview(self._content)), "beat": time.time()}, ensure_ascii=False).encode()
        mine = self._objects.put_over(self._path.key, content, self._mine)
        if mine is None:
            found = self._objects.get(self._path.key)
            if found is None or _holder(found.content).get("mark") != self._mark:
                self.is_lost = True
                return
            mine = found.facts
        self._mine = mine

    def give_back(self) -> None:
        """Remove it, unless another has taken it over."""
        if not self.is_lost:
            self._objects.delete([self._path.key])


def holder_of(
    path: RemotePath, dead_after_seconds: float, is_gone: Callable[[dict[str, Any]], bool]
) -> dict[str, Any] | None:
    """What the claim at `path` says; `None` where nobody holds it."""
    found = path.objects.get(path.key)
    return _holder(found.content) if found is not None and _may_live(found, dead_after_seconds, is_gone) else None


def _may_live(claim: Object, dead_after_seconds: float, is_gone: Callable[[dict[str, Any]], bool]) -> bool:
    return time.time() - claim.facts.modified < dead_after_seconds and not is_gone(_holder(claim.content))


def _holder(content: memoryview) -> dict[str, Any]:
    try:
        holder = json.loads(bytes(content))
    except ValueError:
        return {}
    return holder if isinstance(holder, dict) else {}
