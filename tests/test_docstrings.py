"""Every public name says what it is, and whatever takes or gives arrays says of what shape.

Read from the source, so that no module has to be imported. Private is what begins with an underscore; a method that
overrides a documented one inherits its words, as `help()` shows them.
"""

from __future__ import annotations

import ast
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import click
import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {"stores": "stores", "featurize": "featurize", "fusion": "fusion", "cli": "cli.py"}
ARRAYS = {"ndarray", "Tensor"}
OTHERS = {"RawIOBase": io.RawIOBase, "Group": click.Group, "ClickException": click.ClickException}
# (N, D), (1 + R,), (N, ΣD + M), (B, T'), (n_bins, …); (…) is any, and a scalar has none
DIM = r"(?:Σ?[A-Z]{1,2}'?|D_slot|\d+|[a-z]|[a-z]+(?:_[a-z]+)+|rows|width|ids|…)"
SIZE = rf"{DIM}(?: ?[+*-] ?{DIM})*"
SHAPE = re.compile(rf"\({SIZE}(?:,|(?:, {SIZE})+)\)|\(…\)|scalar|any shape")
Def = ast.FunctionDef | ast.AsyncFunctionDef


class Name(NamedTuple):
    """where: `stores/store.py:Store.rows`. inherits: a class above it says what it does."""

    where: str
    node: ast.Module | ast.ClassDef | Def
    inherits: bool


def modules(package: str) -> list[Path]:
    root = ROOT / PACKAGES[package]
    return [root] if root.is_file() else sorted(root.rglob("*.py"))


def classes() -> dict[str, ast.ClassDef]:
    trees = (ast.parse(path.read_text("utf-8")) for package in PACKAGES for path in modules(package))
    return {node.name: node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}


CLASSES = classes()


def base_names(node: ast.ClassDef) -> list[str]:
    heads = [base.value if isinstance(base, ast.Subscript) else base for base in node.bases]
    return [head.attr if isinstance(head, ast.Attribute) else head.id for head in heads]  # type: ignore[attr-defined]


def inherited(node: ast.ClassDef, method: str) -> bool:
    """Whether a class above has a documented method of this name."""
    for name in base_names(node):
        if hasattr(OTHERS.get(name), method):
            return True
        above = CLASSES.get(name)
        if above is None:
            continue
        for inner in above.body:
            if isinstance(inner, Def) and inner.name == method and ast.get_docstring(inner):
                return True
        if inherited(above, method):
            return True
    return False


def is_public(name: str) -> bool:
    return not name.startswith("_")


def public_names(package: str) -> Iterator[Name]:
    for path in modules(package):
        where = str(path.relative_to(ROOT))
        tree = ast.parse(path.read_text("utf-8"))
        if tree.body:
            yield Name(where, tree, False)
        for node in tree.body:
            if isinstance(node, ast.ClassDef | Def) and is_public(node.name):
                yield Name(f"{where}:{node.name}", node, False)
            if isinstance(node, ast.ClassDef) and is_public(node.name):
                for method in node.body:
                    if isinstance(method, Def) and is_public(method.name) and not is_setter(method):
                        yield Name(f"{where}:{node.name}.{method.name}", method, inherited(node, method.name))


def is_setter(node: Def) -> bool:
    return any(isinstance(d, ast.Attribute) and d.attr == "setter" for d in node.decorator_list)


def takes_or_gives_arrays(node: Def) -> bool:
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    annotations = [argument.annotation for argument in arguments] + [node.returns]
    names = {
        inner.attr if isinstance(inner, ast.Attribute) else getattr(inner, "id", "")
        for annotation in annotations
        if annotation is not None
        for inner in ast.walk(annotation)
    }
    return bool(names & ARRAYS)


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_has_a_docstring(package):
    names = list(public_names(package))
    assert len(names) > 5
    assert not [name.where for name in names if not name.inherits and not ast.get_docstring(name.node)]


@pytest.mark.parametrize("package", ["stores", "featurize", "fusion"])
def test_whatever_takes_or_gives_arrays_says_their_shape(package):
    functions = [name for name in public_names(package) if isinstance(name.node, Def) and not name.inherits]
    with_arrays = [name for name in functions if takes_or_gives_arrays(name.node)]
    assert len(with_arrays) > 5
    assert not [name.where for name in with_arrays if not SHAPE.search(ast.get_docstring(name.node) or "")]
