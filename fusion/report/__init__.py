"""The report of a run, or of an ablation: one HTML file that needs nothing beside it, and no network.

Its numbers come from the folder alone, and the same folder gives the same bytes. Segments (the map, the worst mistakes,
data health) are shown where the store is at hand, with texts and audio where the raw data is. Without JavaScript all
numbers and pictures are there; the map, players and the choice of light or dark need it.
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from fusion.report import words
from fusion.report.embed import script_json
from fusion.report_parts import PLAIN, ReportParts

if TYPE_CHECKING:
    from featurize.config import FeaturizeConfig
    from fusion.report.material import Material
    from stores.store import Store

REPORT = "report.html"
SCRIPTS = ("page.js", "map.js")


def write_report(
    run: Path,
    parts: ReportParts = PLAIN,
    *,
    store: Store | None = None,
    config: FeaturizeConfig | None = None,
    material: Material | None = None,
) -> Path:
    """Write `report.html` into the run folder `run`, whole or not at all; returns its path.

    store, config: of the training that has just ended; else the store is looked for where `run` says, and its raw data
    where the store says. Raises `TriadError` where the run is not whole.
    """
    from fusion.report.folder import RunFolder
    from fusion.report.material import material_of
    from fusion.report.mistakes import MEASURES
    from fusion.report.page import build_page

    folder = RunFolder.read(run)
    page = build_page(folder, material or material_of(folder, parts, store, config))
    data = {"map-data": page.map.data if page.map else None, "clips": page.clips.base64}
    return _write(run / REPORT, "run.html", data, page=page, kinds=words.KINDS, mistake_measures=MEASURES)


def write_ablation_report(folder: Path) -> Path:
    """Write `report.html` into the folder of an ablation; returns its path. Raises `TriadError`."""
    from fusion.report.ablation import build_ablation_page

    return _write(folder / REPORT, "ablation.html", {}, page=build_ablation_page(folder), kinds=words.KINDS)


@cache
def _environment() -> Environment:
    """Templates are compiled once in a process."""
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
        short=words.short,
    )
    return environment


def _write(path: Path, template: str, data: dict[str, Any], **variables: Any) -> Path:
    script = "\n".join(files("fusion.report").joinpath(name).read_text("utf-8") for name in SCRIPTS)
    parsed = _environment().get_template(template)
    html = parsed.render(
        script=Markup(script),
        # only this script may run, whatever a label or a lyric holds
        script_hash=base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii"),
        data={name: script_json(value) for name, value in data.items() if value},
        **variables,
    )
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(html.encode("utf-8", "replace"))  # a lone surrogate in a label is shown as ?
    partial.replace(path)
    return path
