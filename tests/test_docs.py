"""What the documents say is so: links and anchors lead somewhere, defaults and the tree of the README are true.

That what they show works is tested by test_shown.py.
"""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

from fusion.config import load_config

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


EXAMPLES = sorted(ROOT.glob("examples/*"))


def test_there_are_documents():
    assert {path.name for path in DOCUMENTS} >= {"README.md", "data.md", "config.md", "metrics.md", "CHANGELOG.md"}


def inline(document: Path) -> Iterator[Token]:
    for token in MarkdownIt().enable("table").parse(document.read_text("utf-8")):
        yield from token.children or ()


def anchors(document: Path) -> set[str]:
    """Of its headings, as GitHub makes them."""
    tokens = MarkdownIt().parse(document.read_text("utf-8"))
    headings = (content.content for opening, content in pairwise(tokens) if opening.type == "heading_open")
    found: Counter[str] = Counter()
    names = set()
    for heading in headings:
        text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
        name = re.sub(r"[^\w\- ]", "", text.lower()).strip().replace(" ", "-")
        names.add(f"{name}-{found[name]}" if found[name] else name)
        found[name] += 1
    return names


def targets(document: Path) -> list[str]:
    kinds = {"link_open": "href", "image": "src"}
    return [str(token.attrs[kinds[token.type]]) for token in inline(document) if token.type in kinds]


def place(document: Path, target: str) -> tuple[Path, str]:
    path, _, anchor = target.partition("#")
    return (document.parent / unquote(path)).resolve() if path else document, anchor


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document):
    for target in targets(document):
        if "://" in target:
            parts = urlsplit(target)
            assert parts.scheme == "https" and re.fullmatch(r"[\w-]+(\.[\w-]+)+", parts.netloc), target
            continue
        path, anchor = place(document, target)
        assert path.exists() and path.is_relative_to(ROOT), target
        assert not anchor or (path.suffix == ".md" and anchor in anchors(path)), target


def test_every_picture_is_shown_and_every_document_is_in_the_index():
    shown = {place(document, target)[0] for document in DOCUMENTS for target in targets(document)}
    assert set(ROOT.glob("docs/images/*")) <= shown
    index = ROOT / "docs/index.md"
    listed = {place(index, target)[0] for target in targets(index)}
    assert set(ROOT.glob("docs/*.md")) - listed == {index}
    assert index in shown


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda path: path.name)
def test_documents_that_examples_name_exist(file):
    for name in re.findall(r"\b(?:docs|examples)/[\w./-]+\w", file.read_text("utf-8")):
        assert (ROOT / name).is_file(), name


def test_configured_defaults_in_the_documents_are_the_defaults(tmp_path):
    (snippet,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/config.md").read_text("utf-8"), re.DOTALL)
    (tmp_path / "c.yaml").write_text(snippet, "utf-8")
    shown, default = load_config(tmp_path / "c.yaml"), load_config()
    assert shown.training == default.training and shown.model.fusion == default.model.fusion
    assert shown.split == default.split and shown.model.audio_encoder == default.model.audio_encoder
    assert shown.preprocessing == default.preprocessing and shown.encoder_training == default.encoder_training
    assert shown.finetuning == default.finetuning


def test_the_readme_tree_names_every_module():
    readme = (ROOT / "README.md").read_text("utf-8")
    for package in ("stores", "featurize", "fusion"):
        for path in (ROOT / package).rglob("*.py"):
            inner = path.relative_to(ROOT / package)
            if path.name != "__init__.py" and inner.parts[0] not in ("report",):
                assert path.name in readme, path


def test_every_promise_of_the_security_document_has_its_test():
    text = (ROOT / "SECURITY.md").read_text("utf-8")
    named = set(re.findall(r"`(test_\w+)`", text))
    defined = {
        name
        for path in (ROOT / "tests").glob("*.py")
        for name in re.findall(r"^ *def (test_\w+)", path.read_text("utf-8"), re.MULTILINE)
    }
    assert len(named) > 20 and named <= defined, named - defined
    for bullet in re.findall(r"^- .*(?:\n  .*)*", text.partition("## Not trusted")[2], re.MULTILINE):
        assert "`test_" in bullet, bullet


def test_no_file_of_a_package_is_ignored_by_git():
    """A pattern such as `demo/` once hid a whole package from every clone."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    modules = [
        str(p.relative_to(ROOT)) for name in ("stores", "featurize", "fusion") for p in (ROOT / name).rglob("*.py")
    ]
    result = subprocess.run(["git", "check-ignore", *modules], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.stdout == ""
