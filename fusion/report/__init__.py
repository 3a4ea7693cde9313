"""The report of a run: one HTML file."""
from pathlib import Path
def write_report(run: Path) -> Path:
    (run / "report.html").write_text("")
    return run / "report.html"
