"""The code in docs/extend.md and docs/python.md, run as it stands there: on a small demo, with the real commands."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

import featurize

pytestmark = pytest.mark.usefixtures("unrendered")

ROOT = Path(__file__).parents[1]
CONFIG = """\
data: {path: my-songs}
model:
  targets: [{name: mood}]
training: {epochs: 2, seeds: [0], bootstrap: 100}
"""


def blocks(document: str) -> list[tuple[str, str]]:
    """Language and content of each fenced block, in order."""
    found = re.findall(r"^```(\w+)\n(.*?)^```", (ROOT / "docs" / document).read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert found
    return found


@pytest.fixture
def workplace(project: Path, demo_data: Path) -> Path:
    """A project folder with raw data at my-songs, a store, and a configuration that trains for seconds."""
    Path("my-songs").symlink_to(demo_data)
    Path("config.yaml").write_text(CONFIG, "utf-8")
    featurize.ingest()
    return project


def install(folder: Path, pyproject: str) -> None:
    """What `pip install .` writes of a pure package: its metadata, on the path that Python searches."""
    (name,) = re.findall(r'^name = "(.*)"', pyproject, re.MULTILINE)
    points = re.findall(r'^\[project\.entry-points\."(.*)"\]\n((?:\w+ = ".*"\n)+)', pyproject, re.MULTILINE)
    assert len(points) == 2
    metadata = folder / f"{name.replace('-', '_')}-0.1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1\n", "utf-8")
    (metadata / "entry_points.txt").write_text(
        "\n".join(f"[{group}]\n{lines.replace(chr(34), '')}" for group, lines in points), "utf-8"
    )


def test_an_encoder_and_a_fusion_of_ones_own(workplace, nothing_named, run_cli):
    run_cli("featurize", "--encoder", "lsa")
    commands = 0
    for language, content in blocks("extend.md"):
        if language == "python" and (file := re.match(r"# (\w+\.py)\n", content)):
            assert len(content.splitlines()) < 40, file[1]
            Path(file[1]).write_text(content, "utf-8")
        elif language == "python":
            exec(compile(content, "extend.md", "exec"), {})
        elif language == "toml":
            Path("site").mkdir()
            install(Path("site"), content)
            sys.path.insert(0, "site")
        else:
            for line in content.splitlines():
                words = line.split()
                assert words[0] == "cli"
                where = ("--workers", "0") if words[1] == "featurize" and "--list" not in words else ()
                listed = run_cli(*words[1:], *where).output
                commands += 1
                if "--list" in words:
                    assert {"mel_stats", "loudness"} <= set(listed.split())
    assert commands >= 9
    assert {path.name for path in Path("runs").iterdir()} >= {"pooling", "sharper", "pooling-installed"}


def test_the_python_of_the_documents(workplace):
    """As one program, top to bottom."""
    code = "\n".join(content for language, content in blocks("python.md") if language == "python")
    exec(compile(code, "python.md", "exec"), {})
    assert Path("runs/gated/report.html").is_file() and Path("runs/small").is_dir()
