"""Build the site: README, documents, and a reference of every public name, from docstrings. Offline, and strict: a
broken link, anchor or cross-reference is an error.

    pip install -e '.[docs]'
    python docs/site/build.py            # site/index.html

MkDocs wants all pages below one folder, and its configuration outside of it. So pages are laid out as in the
repository, in a folder that is deleted afterwards: links between them need no change, but those to Python files, which
lead to their page in the reference.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import click
import yaml

ROOT = Path(__file__).parents[2]
PACKAGES = ("stores", "featurize", "fusion")
ABOUT = ("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")


@click.command()
@click.option("--out", default=Path("site"), show_default=True, type=click.Path(path_type=Path), help="Where to write.")
def main(out: Path) -> None:
    """Build the site with MkDocs, in strict mode."""
    with tempfile.TemporaryDirectory() as name:
        pages = Path(name, "pages")
        lay_out(pages)
        settings = yaml.safe_load(Path(__file__).with_name("mkdocs.yml").read_text("utf-8"))
        settings |= {"docs_dir": str(pages), "site_dir": str(out.resolve()), "nav": navigation(pages)}
        settings["plugins"][-1]["mkdocstrings"]["handlers"]["python"]["paths"] = [str(ROOT)]
        configuration = Path(name, "mkdocs.yml")
        configuration.write_text(yaml.safe_dump(settings, sort_keys=False), "utf-8")
        command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", str(configuration)]
        told = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}  # mkdocs.yml says it
        done = subprocess.run(command, check=False, env=told, capture_output=True, text=True)
        if done.returncode:  # not --quiet, which would count no warning
            raise SystemExit(done.stderr)
    for page in out.rglob("*.html"):
        page.write_text(show_examples(page.read_text("utf-8")), "utf-8")
    click.echo(f"Wrote {out / 'index.html'}")


def lay_out(pages: Path) -> None:
    """Documents as in the repository, and a page for each module."""
    for document in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]:
        place = document.relative_to(ROOT)
        up = "../" * (len(place.parts) - 1)
        text = re.sub(
            rf"\]\({re.escape(up)}({'|'.join(PACKAGES)})/([\w/]+)\.py\)",
            rf"]({up}reference/\1/\2.md)",
            document.read_text("utf-8"),
        )
        (pages / place).parent.mkdir(parents=True, exist_ok=True)
        (pages / place).write_text(text, "utf-8")
    shutil.copytree(ROOT / "docs/images", pages / "docs/images")
    shutil.copy(Path(__file__).with_name("wide.css"), pages)
    shutil.copytree(ROOT / "examples", pages / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    for module, page in modules().items():
        (pages / page).parent.mkdir(parents=True, exist_ok=True)
        (pages / page).write_text(f"# {module}\n\n::: {module}\n", "utf-8")


def modules() -> dict[str, str]:
    """Name of each module to its page: `stores.store` to `reference/stores/store.md`."""
    found = {}
    for package in PACKAGES:
        for file in sorted((ROOT / package).rglob("*.py")):
            place = file.relative_to(ROOT).with_suffix("")
            if place.name == "__init__":
                place = place.parent
                found[".".join(place.parts)] = f"reference/{place.as_posix()}/index.md"
            else:
                found[".".join(place.parts)] = f"reference/{place.as_posix()}.md"
    return found


def show_examples(html: str) -> str:
    """Examples of commands stand after click's mark for text that is not wrapped, which Markdown does not know."""
    html = re.sub(r"<p>\x08\nExample:\s+(.*?)</p>", r"<p>Example:</p><pre><code>\1</code></pre>", html)
    return html.replace("\x08", "")


def navigation(pages: Path) -> list:
    """Documents in the order of docs/index.md; modules by package."""
    index = (ROOT / "docs/index.md").read_text("utf-8")
    documents = []
    for name in re.findall(r"^\|.*\]\(([\w-]+\.md)\) \|$", index, re.MULTILINE):
        heading = (ROOT / "docs" / name).read_text("utf-8").splitlines()[0].removeprefix("# ")
        documents.append({heading.partition(":")[0]: f"docs/{name}"})
    reference = [
        {package: [{module: page} for module, page in modules().items() if module.split(".")[0] == package]}
        for package in PACKAGES
    ]
    about = [name for name in ABOUT if (pages / name).is_file()]
    return [
        {"Home": "README.md"},
        {"Documents": ["docs/index.md", *documents]},
        {"Reference": reference},
        {"About": about},
    ]


if __name__ == "__main__":
    main()
