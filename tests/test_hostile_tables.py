"""Tables that nobody would write by hand: ids, labels, paths and columns that mean harm, at the command line."""

from __future__ import annotations

import csv
import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fusion.csv_cell import FORMULA_STARTS
from stores import open_store

IDS = [
    "a/b/c",
    "new\nline",
    "../../etc/passwd",
    "..",
    "nul\0byte",
    "😀🎵",
    "x" * 10_240,
    '=HYPERLINK("http://x")',
    "<script>alert(1)</script>",
    "-1+2",
    "\x1b[31mred",
    "\u202ebackwards",
]
LABELS = ["<script>alert('x')</script>", "</script></svg><img src=x onerror=alert(1)>", "=1+1"]
N = 36


@pytest.fixture
def hostile_project(project, run_cli):
    """A store made from a parquet of hostile ids, groups, labels and column names, with vectors that know the label."""
    rng = np.random.default_rng(0)
    ids = IDS + [f"s{i}" for i in range(N - len(IDS))]
    vectors = rng.normal(size=(N, 4)).astype(np.float32)
    vectors[np.arange(N), np.arange(N) % 3] += 3
    columns = {
        "segment_id": ids,
        "group": [f"../</script><b>{row // 3}" for row in range(N)],
        "<b>mood</b>": [LABELS[row % 3] for row in range(N)],
        "lyric_embedding": list(vectors),
        "audio_embedding": list(vectors[:, ::-1]),
    }
    pq.write_table(pa.table(columns), "vectors.parquet")
    run_cli("import", "vectors.parquet")
    return ids


class Elements(HTMLParser):
    """What a browser would make of a page: its tags with their attributes, and its text."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""
        self.scripts: list[str] = []
        self._in_script = False
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self._in_script = tag == "script"
        if self._in_script:
            self.scripts.append("")

    def handle_endtag(self, tag):
        self._in_script = False

    def handle_data(self, data):
        if self._in_script:
            self.scripts[-1] += data
        else:
            self.text += data


def check_page(path):
    """Nothing of the data became markup, and only the page's own script and data that are JSON are scripts."""
    page = Elements(path.read_text("utf-8"))
    assert not page.tags & {"img", "b", "iframe", "object"}
    assert not {name for name in page.attributes if name.startswith("on")}
    assert "<b>mood</b>" in page.text
    *data, script = page.scripts
    assert script.startswith('"use strict";') and "alert" not in script
    return page, [json.loads(content) for content in data]


def test_hostile_ids_and_labels_pass_through_as_text(hostile_project, run_cli):
    assert open_store(Path("features.zarr")).ids.tolist() == hostile_project
    small = ["training.epochs=2", "training.seeds=[0]", "training.bootstrap=100"]
    settings = [part for setting in small for part in ("--set", setting)]
    run_cli("fit", "--name", "a", "--target", "<b>mood</b>", *settings)

    page, (on_map,) = check_page(Path("runs/a/report.html"))
    assert "alert('x')" in page.text
    assert [text.encode("utf-8", "replace").decode() for text in hostile_project] == on_map["ids"]
    assert set(on_map["colours"][0]["classes"]) == set(LABELS)

    run_cli("predict", "a", "features.zarr", "--out", "p.csv")
    with Path("p.csv").open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert [row[0].removeprefix("'") for row in rows] == hostile_project
    words = [cell for row in [header, *rows] for cell in row if cell and not is_number(cell)]
    assert '\'=HYPERLINK("http://x")' in words and not [cell for cell in words if cell.startswith(FORMULA_STARTS)]

    run_cli("ablate", "--fusion", "late", "--slots", "all", "--target", "<b>mood</b>", *settings)
    page, data = check_page(Path("ablations/default/report.html"))
    assert data == []
    top = {path.relative_to(Path.cwd()).parts[0] for path in Path.cwd().rglob("*")}
    assert top == {"vectors.parquet", "features.zarr", "runs", "ablations", "p.csv"}, "an id or a group named a file"


def is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def test_every_csv_is_written_through_csv_cell():
    root = Path(__file__).parents[1]
    sources = [path for package in ("stores", "featurize", "fusion") for path in (root / package).rglob("*.py")]
    writers = {
        path.name for path in sources if "csv.writer(" in (text := path.read_text("utf-8")) or "write_csv(" in text
    }
    through = {path.name for path in sources if "csv_cell(" in path.read_text("utf-8")}
    # the demo makes its own data
    assert {"prediction_file.py", "shapley.py"} <= writers & through
    assert writers - through <= {path.name for path in (root / "featurize" / "demo").glob("*.py")}


SIX = ["0", "1", "2", "3", "4", "5"]
COLUMNS = {"segment_id": SIX, "group": list("aabbcc"), "text": ["la la"] * 6, "mood": list("xyxyxy")}


@pytest.mark.parametrize(
    ("column", "cells", "kind"),
    [
        ("segment_id", [[1]] * 6, "list<"),
        ("segment_id", [{"a": 1}] * 6, "struct<"),
        ("segment_id", [b"\xff"] * 6, "binary"),
        ("group", pa.array([[("a", 1)]] * 6, pa.map_(pa.string(), pa.int32())), "map<"),
        ("text", [["la"]] * 6, "list<"),
        ("text", [b"\xff\xfe"] * 6, "binary"),
        ("audio_path", [["a.wav"]] * 6, "list<"),
        ("has_audio", [[True]] * 6, "list<"),
    ],
)
def test_a_column_of_another_type_is_named(project, run_cli, column, cells, kind):
    pq.write_table(pa.table({**COLUMNS, column: cells}), "t.parquet")
    output = run_cli("ingest", "t.parquet", code=2).output
    assert f"Error: t.parquet: column '{column}' is to be the {column}, but holds {kind}" in output
    assert f"--set data.columns.{column}=NAME" in output and not Path("features.zarr").exists()


def test_ten_thousand_columns_are_not_taken_for_labels(project, run_cli):
    zeros = np.zeros(6)
    pq.write_table(pa.table({**COLUMNS, **{f"c{number}": zeros for number in range(10_000)}}), "t.parquet")
    output = run_cli("ingest", "t.parquet", code=2).output
    assert "t.parquet has 10,001 columns that could be labels; up to 500 are taken unasked." in output
    assert len(run_cli("ingest", "t.parquet", "--set", "data.labels=[missing]", code=2).output) < 500
    run_cli("ingest", "t.parquet", "--set", "data.labels=[mood, c7]")
    assert set(open_store(Path("features.zarr")).label_names()) == {"mood", "c7"}


def test_names_stay_inside_the_store_and_are_not_too_long(project, run_cli):
    rows = {
        "ids": SIX,
        "group": list("aabbcc"),
        "mood": list("xyxyxy"),
        "v_embedding": [[1.0, float(i)] for i in range(6)],
    }
    pq.write_table(pa.table(rows), "t.parquet")
    run_cli("import", "t.parquet", "--set", "data.columns.segment_id=ids", "--column", "v_embedding=../..")
    run_cli("split", "--name", "../../outside", "--val", "0.3", "--test", "0.3")
    store = open_store(Path("features.zarr"))
    assert store.features() == ["../.."] and "../../outside" in store.splits()
    store.delete_feature("../..")
    assert {path.name for path in Path.cwd().iterdir()} == {
        "t.parquet",
        "features.zarr",
    } and "mood" in store.label_names()
    for command in (
        ["split", "--name", "n" * 5000],
        ["import", "t.parquet", "--column", f"v_embedding=text/{'ä' * 100}"],
    ):
        assert "is too long for a store: " in run_cli(*command, code=2).output
    pq.write_table(pa.table({**COLUMNS, "label " * 100: SIX}), "long.parquet")
    assert "is too long for a store: " in run_cli("ingest", "long.parquet", "--store", "new.zarr", code=2).output


def test_a_parquet_cut_short_is_refused(project, run_cli):
    pq.write_table(pa.table(COLUMNS), "whole.parquet")
    content = Path("whole.parquet").read_bytes()
    for length in (0, 3, 10, len(content) // 2, len(content) - 5):
        Path("t.parquet").write_bytes(content[:length])
        assert run_cli("ingest", "t.parquet", code=2).output.startswith("Error: Cannot read t.parquet: ")


@pytest.mark.parametrize("allowed", ["false", "true"])
def test_a_path_that_can_be_none_is_a_missing_file(project, run_cli, allowed):
    cells = {"audio_path": ["nul\0byte", "", "", "", "", ""], "text_path": ["n" * 5000, "", "", "", "", ""]}
    cells |= {
        "text": ["", "night and day", "sun on sea", "rain and snow", "love of my life", "day after day"],
        "group": SIX,
    }
    rows = pa.table({**COLUMNS, **cells})
    more = [rows.slice(1).set_column(0, "segment_id", pa.array([f"{copy}{i}" for i in SIX[1:]])) for copy in "ab"]
    pq.write_table(pa.concat_tables([rows, *more]), "t.parquet")
    setting = f"data.allow_outside_root={allowed}"
    output = run_cli("ingest", "t.parquet", "--set", setting, code=0 if allowed == "true" else 2).output
    assert "\0" not in output and "n" * 201 not in output and "x text file that does not exist" in output
    if allowed == "true":
        output = run_cli("featurize", "--encoder", "lsa").output
        assert "15 present, 0 absent, 1 failed of 16" in output and "File name too long" in output


def test_a_path_through_a_linked_folder_leaves_the_root(project, run_cli):
    Path("outside").mkdir()
    Path("outside/a.txt").write_text("la la", "utf-8")
    Path("data").mkdir()
    Path("data/link").symlink_to(Path("outside").absolute())
    table = "segment_id,group,text_path,mood\na,g,link/a.txt,x\nb,h,link/../../outside/a.txt,y\n"
    Path("data/segments.csv").write_text(table, "utf-8")
    output = run_cli("ingest", "data", code=2).output
    assert "error: 2 x text path that leaves the data folder" in output
    assert "--set data.allow_outside_root=true" in output and not Path("features.zarr").exists()
