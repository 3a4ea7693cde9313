"""Inline SVG that follows its page: text in the page's font, ink in the page's text colour, no background.

Lengths are CSS pixels at the size the picture is drawn for (`WIDTH`; a phone shows it at about three quarters of that).
The same picture gives the same bytes. Ids are prefixed, since all pictures share one page.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import Any
from xml.etree import ElementTree

import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure

INK = "#010203"  # stands for the page's text colour until the SVG is written
BLUE, ORANGE = "#2f86c8", "#c9721c"  # at least 3:1 on white and on the dark page; told apart by the colour-blind
# lines of several things: colour and marker, so that no reader rests on colour alone
SERIES = ((BLUE, "o"), (ORANGE, "s"), ("#2a9d78", "^"), ("#b0589f", "D"), ("#8a7a12", "v"), ("#7d6bd0", "P"))
WIDTH, WIDE = 460, 920
GRID = 0.16  # opacity
QUIET = 0.62

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "triad-fusion",
    "font.size": 12,
    "text.parse_math": False,  # a label with two dollar signs is no formula
    "axes.edgecolor": (*matplotlib.colors.to_rgb(INK), 0.45),
    "axes.facecolor": "none",
    "axes.labelcolor": INK,
    "axes.labelsize": 12,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.axisbelow": True,
    "figure.facecolor": "none",
    "grid.color": INK,
    "grid.alpha": GRID,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
}
_SVG = "{http://www.w3.org/2000/svg}"
_XLINK_HREF = "{http://www.w3.org/1999/xlink}href"
_FONT = re.compile(r"font: (?:(\d+) )?([\d.]+px)[^;]*")
_REFERENCE = re.compile(r"url\(#")


@dataclass(frozen=True)
class Picture:
    """svg: ready for the page. caption: how to read it. wide: takes the whole width of the page."""

    svg: Markup
    caption: str
    wide: bool = False


def picture(
    draw: Callable[[Figure], None], *, prefix: str, label: str, caption: str, height: float, wide: bool = False
) -> Picture:
    """Draw on an empty figure. prefix: unique in the page. label: what a screen reader says."""
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # labels may be in any script; the browser has the fonts that matplotlib lacks
        warnings.filterwarnings("ignore", message="Glyph ")
        figure = Figure(figsize=((WIDE if wide else WIDTH) / 72, height / 72), layout="constrained")
        draw(figure)
        svg = _rendered(figure)
    return Picture(Markup(_inline(svg, prefix, label)), caption, wide)


def _rendered(figure: Figure) -> bytes:
    engine = figure.get_layout_engine()
    assert engine is not None
    engine.execute(figure)
    figure.set_layout_engine("none")  # or `savefig` draws all twice, first to lay it out
    buffer = BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def _inline(svg: bytes, prefix: str, label: str) -> str:
    """Without prolog, metadata, fonts and size; `INK` becomes `currentColor`."""
    root = ElementTree.fromstring(svg)
    for parent in list(root.iter()):
        for name in ("metadata", "style"):  # an inline style sheet would reach the whole page
            for element in parent.findall(_SVG + name):
                parent.remove(element)
    for element in root.iter():
        element.tag = element.tag.removeprefix(_SVG)
        _rewrite(element.attrib, prefix)
    for group in root.iter("g"):
        _share_style(group)
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.attrib.update({"role": "img", "aria-label": label})
    return ElementTree.tostring(root, encoding="unicode")


def _rewrite(attributes: dict[str, str], prefix: str) -> None:
    if "id" in attributes:
        attributes["id"] = f"{prefix}-{attributes['id']}"
    if _XLINK_HREF in attributes:
        target = attributes.pop(_XLINK_HREF)
        attributes["href"] = f"#{prefix}-{target[1:]}" if target.startswith("#") else target
    for name in ("style", "clip-path"):
        if name in attributes:
            value = _REFERENCE.sub(f"url(#{prefix}-", attributes[name]).replace(INK, "currentColor")
            attributes[name] = _FONT.sub(_font_size, value)


def _font_size(match: re.Match[str]) -> str:
    weight = f"font-weight: {match[1]}; " if match[1] else ""
    return f"{weight}font-size: {match[2]}"


def _share_style(group: ElementTree.Element) -> None:
    """Thousands of equal points need to say only once how they look."""
    styles = {child.get("style") for child in group}
    style = next(iter(styles), None)
    if len(group) > 1 and len(styles) == 1 and style and "style" not in group.attrib:
        if any(child.tag != "use" for child in group):
            return
        group.set("style", style)
        for child in group:
            del child.attrib["style"]
