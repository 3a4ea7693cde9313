"""Reports whose pictures are drawn, but neither laid out nor rendered, with shorter clips: for tests that look at none.

Layout, rendering and MP3 are most of the time of a report. Whole are those of test_report.py,
test_report_browser.py, test_demo.py and README.md (test_shown.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch


@contextmanager
def unrendered_pictures() -> Iterator[None]:
    from fusion.report import clips, svg

    empty = b'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1 1"/>'
    with patch.object(svg, "_rendered", lambda _: empty), patch.object(clips, "CLIP_SECONDS", 0.2):
        yield
