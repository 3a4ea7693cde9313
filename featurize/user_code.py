"""Encoders and fusions that do not come with this package: of a user's own file, and of installed packages.

my.module:MyEncoder       a class of a module that Python finds, also in the current folder
my_encoder.py:MyEncoder   a class of this file
tempo                     what an installed package registers, as an entry point of the group `triad_fusion.encoders`
                          or `triad_fusion.fusions`

Code is imported because its user names it: in a command, by an argument in Python, or by installing a package. It is
never imported because a file names it: a store, a run folder, weights and a configuration come from anywhere. What they
name is refused until the user has named it, too (`--allow-code`).
"""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Callable
from functools import cache
from importlib import import_module, invalidate_caches
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from featurize.errors import CodeNotAllowed, ConfigError

OURS = ("featurize.encoders.", "fusion.modules.")  # what comes with this package
_allowed: dict[str, ModuleType] = {}  # modules that the user has named
_classes: dict[str, type] = {}  # classes that came as such, by name


class UserClasses:
    """One kind of them. kind: for messages. group: of entry points. base: what they must be subclasses of."""

    def __init__(self, kind: str, group: str, base: Callable[[], type]):
        self.kind = kind
        self.group = group
        self._base = base

    def installed(self) -> dict[str, EntryPoint]:
        """What packages register, by name; nothing of it is imported."""
        return {point.name: point for point in sorted(entry_points(group=self.group))}

    def find(self, name: str) -> type | None:
        """The class: of an allowed module, or of a package. `None` where no package has registered such a name.

        Raises `CodeNotAllowed` where the user has not named this code, `ConfigError` where it is not such a class.
        """
        if name in _classes:
            return self.checked(_classes[name], name)
        if not is_code(name):
            point = self.installed().get(name)
            return None if point is None else self.checked(_loaded(point), point.value)
        module, _, qualname = name.rpartition(":")
        if module in _allowed:
            return self.checked(_attribute(_allowed[module], qualname, name), name)
        for point in self.installed().values():
            if point.value == name:
                return self.checked(_loaded(point), name)
        raise CodeNotAllowed(
            f"{self.kind.capitalize()} {name} is code that does not come with triad-fusion, and you have not named it: "
            f"nothing of it was run.\nIf you trust it: --allow-code {module}"
        )

    def use(self, what: str | type) -> str:
        """The name, after the import of what the user gave: a name, a module and a class in it, or a class itself."""
        if isinstance(what, str) and not is_code(what):
            return what
        if isinstance(what, type):
            found = self.checked(what, what.__qualname__)
        else:
            found = self.checked(_attribute(allow_code(what), what.rpartition(":")[2], what), what)
        if is_ours(found):
            return str(found.name)  # type: ignore[attr-defined]
        code_sha256(found)  # now: what was imported, not what becomes of the file
        _classes[spec_of(found)] = found
        return spec_of(found)

    def checked(self, found: Any, name: str) -> type:
        """The class, if it is of the right kind. Raises `ConfigError`."""
        base = self._base()
        if not isinstance(found, type) or not issubclass(found, base):
            is_a = f"a class of {found.__mro__[1].__name__}" if isinstance(found, type) else f"a {type(found).__name__}"
            raise ConfigError(f"{name} is {is_a}; an {self.kind} is a subclass of {base.__module__}.{base.__name__}.")
        return found


def is_code(name: str) -> bool:
    """Whether it is `module:Class` or `file.py:Class`."""
    place, colon, qualname = name.rpartition(":")
    is_class = all(part.isidentifier() for part in qualname.split("."))
    return bool(colon) and is_class and (place.endswith(".py") or all(p.isidentifier() for p in place.split(".")))


def allow_code(named: str) -> ModuleType:
    """Import a module that the user has named: `my.module`, `my_file.py`, either perhaps with `:Class`.

    From now on what it holds may be used, whoever names it. Raises `ConfigError` where it cannot be imported.
    """
    place = named.rpartition(":")[0] if is_code(named) else named
    folder, name = Path.cwd(), place
    if place.endswith(".py"):
        file = Path(place).resolve()
        if not file.is_file():
            raise ConfigError(f"There is no file {place}.")
        folder, name = file.parent, file.stem
    if not all(part.isidentifier() for part in name.split(".")):
        raise ConfigError(f"{named!r} names no code; expected my.module:MyClass, or my_file.py:MyClass.")
    if str(folder) not in sys.path:  # last: a file of the user's takes no other module's place
        sys.path.append(str(folder))
    invalidate_caches()
    try:
        module = import_module(name)
    except Exception as error:  # whatever a stranger's module does
        why = " ".join(str(error).split())
        raise ConfigError(f"{named} cannot be imported: {type(error).__name__}: {why}.") from error
    stands_at = getattr(module, "__file__", None)
    if place.endswith(".py") and (stands_at is None or Path(stands_at).resolve() != file):
        raise ConfigError(f"{place}: {name} is another module's name, {stands_at or name}. Call the file otherwise.")
    _allowed[module.__name__] = module
    return module


def allowed_code() -> list[str]:
    """What `allow_code` takes in another process for the same to be allowed there."""
    return sorted({*_allowed, *(cls.__module__ for cls in _classes.values())})


def is_ours(cls: type) -> bool:
    """Whether the class comes with this package."""
    return cls.__module__.startswith(OURS)


def spec_of(cls: type) -> str:
    """`module:Class`."""
    return f"{cls.__module__}:{cls.__qualname__}"


@cache
def code_sha256(cls: type) -> str:
    """SHA-256 of the file that defines it, as it is when it is first asked for; of its source in a notebook."""
    file = getattr(sys.modules.get(cls.__module__), "__file__", None)
    try:
        source = Path(file).read_bytes() if file is not None else inspect.getsource(cls).encode()
    except (OSError, TypeError) as error:
        raise ConfigError(f"{spec_of(cls)} has no source that can be read. Put it in a file of its own.") from error
    return hashlib.sha256(source).hexdigest()


def code_facts(cls: type) -> dict[str, str] | None:
    """What a record keeps of a class that does not come with this package: module and SHA-256; `None` for ours."""
    return None if is_ours(cls) else {"module": cls.__module__, "sha256": code_sha256(cls)}


def check_importable(cls: type) -> None:
    """Raise `ConfigError` where other processes could not import it: what a notebook or a function defines."""
    if cls.__module__ == "__main__" or "<locals>" in cls.__qualname__:
        raise ConfigError(
            f"{cls.__qualname__} is defined in {cls.__module__}, where other processes cannot find it. Put it in a "
            "file of its own, or use workers=0."
        )


def _loaded(point: EntryPoint) -> Any:
    try:
        return point.load()
    except Exception as error:  # whatever a package does
        package = point.dist.name if point.dist is not None else point.value
        raise ConfigError(f"{package} registers {point.name}, and fails: {type(error).__name__}: {error}") from error


def _attribute(module: ModuleType, qualname: str, name: str) -> Any:
    found: Any = module
    for part in qualname.split("."):
        found = getattr(found, part, None)
    if found is None:
        own = [k for k, v in vars(module).items() if isinstance(v, type) and v.__module__ == module.__name__]
        raise ConfigError(f"{name}: {module.__name__} has no {qualname}; its classes are {', '.join(own) or 'none'}.")
    return found
