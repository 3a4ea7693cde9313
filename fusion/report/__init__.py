"""The report of a run: one HTML file that needs nothing beside it, made from the run folder alone.

It opens from disk, without network and without JavaScript, and the same run gives the same bytes.
"""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from fusion.report import words
from fusion.report.folder import RunFolder
from fusion.report.page import build_page

REPORT = "report.html"


def write_report(run: Path) -> Path:
    """Write `report.html` into the run folder `run`, whole or not at all; returns its path."""
    environment = Environment(
        loader=PackageLoader("fusion.report", "."),
        autoescape=True,  # labels come from data and may hold markup
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        number=words.number,
        signed=words.signed,
        bounds=words.bounds,
        percent=words.percent,
        listed=words.listed,
        metric=words.metric_label,
        meaning=words.metric_meaning,
        pattern=words.pattern_label,
    )
    page = build_page(RunFolder.read(run))
    html = environment.get_template("template.html").render(page=page, kinds=words.KINDS)
    path, partial = run / REPORT, run / f".{REPORT}.partial"
    partial.write_text(html, "utf-8")
    partial.replace(path)
    return path
