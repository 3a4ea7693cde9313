"""Nothing imports upward: stores below featurize below fusion below cli; encoders know no store."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ALLOWED = {
    "stores": {"stores"},
    "featurize": {"stores", "featurize"},
    "fusion": {"stores", "featurize", "fusion"},
}
OURS = {"stores", "featurize", "fusion", "cli", "tests"}


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.add(node.module)
    return found


@pytest.mark.parametrize("package", ALLOWED)
def test_nothing_imports_upward(package):
    files = list((ROOT / package).rglob("*.py"))
    assert len(files) > 4
    for file in files:
        upward = {name for name in imports_of(file) if name.split(".")[0] in OURS - ALLOWED[package]}
        assert not upward, f"{file} imports {upward}"


def test_encoders_know_no_store_and_stores_know_no_torch():
    for file in (ROOT / "featurize" / "encoders").rglob("*.py"):
        assert not {name for name in imports_of(file) if name.split(".")[0] == "stores"}, file
    for file in (ROOT / "stores").rglob("*.py"):
        heavy = {"torch", "librosa", "transformers", "sklearn"}
        assert not {name for name in imports_of(file) if name.split(".")[0] in heavy}, file


def test_a_file_holds_one_idea():
    """Long files hold two; this is where the conversation starts."""
    for package in ALLOWED:
        for file in (ROOT / package).rglob("*.py"):
            assert len(file.read_text("utf-8").splitlines()) <= 400, file
