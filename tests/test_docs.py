"""What the documents show works: configuration snippets load, links lead somewhere, the tree of the README is true."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from fusion.config import load_config

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


def test_there_are_documents():
    assert {path.name for path in DOCUMENTS} >= {"README.md", "data.md", "config.md", "metrics.md", "CHANGELOG.md"}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document):
    for target in re.findall(r"\]\(([^)#]+)\)", document.read_text("utf-8")):
        assert target.startswith("https://") or (document.parent / target).exists(), target


def test_configuration_snippets_load(tmp_path):
    snippets = [s for d in DOCUMENTS for s in re.findall(r"```yaml\n(.*?)```", d.read_text("utf-8"), re.DOTALL)]
    assert snippets
    for number, snippet in enumerate(snippets):
        path = tmp_path / f"{number}.yaml"
        path.write_text(snippet, "utf-8")
        load_config(path)


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


def test_commands_in_the_documents_exist():
    from cli import COMMANDS

    for document in DOCUMENTS:
        for name in re.findall(r"^cli ([a-z-]+)", document.read_text("utf-8"), re.MULTILINE):
            assert name in COMMANDS, (document.name, name)


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
