"""From a table to a store: every problem found, presence counted, and both layouts with the same contents."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from featurize.config import ColumnsConfig, DataConfig, TargetConfig
from featurize.errors import SourceError
from featurize.ingestion import Severity, check, write_store
from featurize.segments import RawText, UnreadableInput
from featurize.sources import open_source
from featurize.stated_times import BLOBS_LOOKED_AT, PAIRS_MEASURED
from featurize.timecode import seconds_to_lrc, seconds_to_smpte
from stores import open_store
from stores.store import Split
from stores.verify import verify
from tests.stores_contract import RECORD
from tests.stores_contract import write as write_rows


def write_csv(folder: Path, rows: list[dict[str, str]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with (folder / "segments.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    return folder


def problems_of(folder: Path, **config) -> dict[str, tuple[str, int]]:
    return {p.what: (str(p.severity), p.count) for p in check(folder, DataConfig(**config)).problems}


def row(segment_id="a", group="g", **cells) -> dict[str, str]:
    return {"segment_id": segment_id, "group": group, "text": "la la", "mood": "happy", **cells}


def test_a_clean_table_has_no_problems_and_keeps_its_ids(tmp_path):
    folder = write_csv(tmp_path / "data", [row("010"), row("1e5", "h", mood="sad")])
    found = check(folder, DataConfig())
    assert found.problems == [] and found.segments["id"].tolist() == ["010", "1e5"]
    store, what = write_store(found, tmp_path / "features.zarr")
    assert what == "new" and store.label("mood").tolist() == ["happy", "sad"]
    assert store.segment_column("has_text").tolist() == [True, True]


def test_errors_are_all_found_counted_and_shown_and_nothing_is_written(tmp_path):
    rows = [row("a"), row("a"), row("a"), row("b"), row("b"), row(""), row("c", group="")]
    rows += [row("d", start_seconds="5", end_seconds="4"), row("e", start_seconds="soon"), row("f", start_seconds="-1")]
    rows += [row("g", audio_path="../../etc/passwd"), row("h", audio_path="/etc/passwd")]
    folder = write_csv(tmp_path / "data", rows)
    found = check(folder, DataConfig())
    assert {p.what: p.count for p in found.errors} == {
        "empty id": 1,
        "duplicate id": 2,
        "segment without a group": 1,
        "time that is no number": 1,
        "segment that ends before it starts": 2,
        "audio path that leaves the data folder": 2,
    }
    text = "\n".join(str(p) for p in found.problems)
    assert "'a' in rows 1, 2, 3" in text and "row 6" in text and "../../etc/passwd" in text
    with pytest.raises(SourceError, match="Nothing was written: 6 kinds"):
        write_store(found, tmp_path / "features.zarr")
    assert not (tmp_path / "features.zarr").exists()


def test_links_that_leave_the_root_are_found_and_allowed_only_by_name(tmp_path):
    outside = tmp_path / "secret.txt"
    outside.write_text("la")
    folder = write_csv(tmp_path / "data", [row("a", text="", text_path="link.txt"), row("b")])
    (folder / "link.txt").symlink_to(outside)
    assert problems_of(folder)["text path that leaves the data folder"] == ("error", 1)
    with pytest.raises(UnreadableInput, match="leaves the data folder"):
        open_source(folder, DataConfig()).raw(0, "text")
    allowed = DataConfig(allow_outside_root=True)
    assert check(folder, allowed).errors == [] and open_source(folder, allowed).raw(0, "text") == RawText("la")


def test_no_more_than_three_examples(tmp_path):
    folder = write_csv(tmp_path / "data", [row(f"s{i}", audio_path=f"{i}.wav") for i in range(5)])
    (problem,) = [p for p in check(folder, DataConfig()).problems if "does not exist" in p.what]
    assert problem.count == 5 and len(problem.examples) == 3 and "… and 2 more" in str(problem)


def test_warnings_do_not_stop_the_store(tmp_path):
    rows = [row(str(i), energy="0.5") for i in range(30)]
    rows[0] |= {"audio_path": "gone.wav"}
    rows[1] |= {"text": ""}
    rows[2] |= {"energy": "loud"}
    rows[3] |= {"mood": "sad"}
    folder = write_csv(tmp_path / "data", rows)
    found = check(folder, DataConfig())
    assert {p.what: str(p.severity) for p in found.problems} == {
        "audio file that does not exist": "warning",
        "segment without any modality": "warning",
        "unreadable energy": "warning",
        "group with contradicting mood": "note",
    }
    store, _ = write_store(found, tmp_path / "features.zarr")
    energy = store.label("energy")
    assert np.isnan(energy[2]) and energy[3] == 0.5


def test_files_that_are_segments_already_are_noticed_before_an_hour_is_spent(tmp_path):
    rows = [row(str(i), audio_path=f"{i}.wav", start_seconds=str(4 * i), end_seconds=str(4 * i + 4)) for i in range(5)]
    folder = write_csv(tmp_path / "data", rows)
    for number in range(5):
        soundfile.write(folder / f"{number}.wav", np.zeros(4 * 8000), 8000)
    (problem,) = check(folder, DataConfig()).problems
    assert problem.count == 4 and "'1': 4 to 8 s of 4.0 s" in str(problem) and "data.audio_is=segment" in str(problem)
    assert check(folder, DataConfig(audio_is="segment")).problems == []


def test_a_target_makes_its_column_a_number(tmp_path):
    folder = write_csv(tmp_path / "data", [row("a", score="1"), row("b", score="high"), row("c", score="low")])
    assert check(folder, DataConfig()).labels["score"].dtype.kind == "T"
    found = check(folder, DataConfig(), [TargetConfig(name="score", kind="regression")])
    assert found.labels["score"].dtype == np.float64
    assert [p.count for p in found.problems if p.what == "unreadable score"] == [2]


def test_an_unusable_table_says_what_to_do(tmp_path):
    folder = write_csv(tmp_path / "data", [{"id": "a", "song": "g"}])
    with pytest.raises(
        SourceError, match=r"no column 'segment_id'.*it has id, song.\n.*data\.columns\.segment_id=NAME"
    ):
        check(folder, DataConfig())
    renamed = DataConfig(columns=ColumnsConfig(segment_id="id", group="song"))
    assert check(folder, renamed).errors == []
    with pytest.raises(SourceError, match="nothing at"):
        check(tmp_path / "nowhere", DataConfig())
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match=r"neither segments\.csv"):
        check(tmp_path / "empty", DataConfig(layout="folder"))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "segments.parquet").write_bytes(b"PAR1nope")
    with pytest.raises(SourceError, match="Cannot read"):
        check(tmp_path / "broken", DataConfig())
    with pytest.raises(SourceError, match="has no rows"):
        (tmp_path / "none").mkdir()
        (tmp_path / "none" / "segments.csv").write_text("segment_id,group\n")
        check(tmp_path / "none", DataConfig())
    (tmp_path / "twice.csv").write_text("segment_id,group,mood,mood\na,b,c,d\n")
    with pytest.raises(SourceError, match="names mood twice"):
        check(tmp_path / "twice.csv", DataConfig())


def test_ingest_again_renews_labels_and_keeps_features(tmp_path):
    folder = write_csv(tmp_path / "data", [row("a"), row("b", note="x")])
    path = tmp_path / "features.zarr"
    store, _ = write_store(check(folder, DataConfig()), path)
    store.create_feature("audio/toy", RECORD)
    write_csv(folder, [row("a", mood="sad"), row("b")])
    store, what = write_store(check(folder, DataConfig()), path)
    assert what == "renewed" and store.features() == ["audio/toy"]
    assert store.label("mood").tolist() == ["sad", "happy"] and store.label_names() == ["mood"]
    write_csv(folder, [row("a"), row("c")])
    with pytest.raises(SourceError, match=r"1 segments of it are gone, e.g. 'b'.\nPass --replace"):
        write_store(check(folder, DataConfig()), path)
    write_csv(folder, [row("a", group="other"), row("b")])
    with pytest.raises(SourceError, match="1 segments changed their group, e.g. 'a'"):
        write_store(check(folder, DataConfig()), path)
    write_csv(folder, [row("a"), row("c")])
    store, what = write_store(check(folder, DataConfig()), path, replace=True)
    assert what == "new" and store.features() == [] and store.ids.tolist() == ["a", "c"]


def test_a_dataset_that_grew_keeps_what_was_encoded(tmp_path):
    folder = write_csv(tmp_path / "data", [row(name, group=name) for name in "abcde"])
    path = tmp_path / "features.zarr"
    store, _ = write_store(check(folder, DataConfig()), path, chunk_rows=2)
    feature = store.create_feature("audio/toy", RECORD, state={"w": np.arange(3)})
    for chunk in feature.chunks():
        for number in chunk:
            write_rows(feature, chunk, [number], value=number + 1.0, hash_byte=number + 1)
    store.write_split(Split("default", np.array([0, 1, 2, 0, 0], np.uint8), {"method": "grouped", "seed": 0}))

    write_csv(folder, [row(name, group=name) for name in "xeadbcy"])  # two more, and another order
    grown, what = write_store(check(folder, DataConfig()), path)
    assert what == "grown" and grown.ids.tolist() == list("xeadbcy") and grown.chunk_rows == 2
    carried = grown["audio/toy"]
    assert carried.fingerprint == feature.fingerprint and carried.state()["w"].tolist() == [0, 1, 2]
    np.testing.assert_array_equal(carried.vectors[:, 0], [0, 5, 1, 4, 2, 3, 0])
    np.testing.assert_array_equal(carried.status, [0, 1, 1, 1, 1, 1, 0])
    np.testing.assert_array_equal(carried.read_input_hashes()[:, 0], [0, 5, 1, 4, 2, 3, 0])
    np.testing.assert_array_equal(grown.split("default").parts, [255, 0, 0, 0, 1, 2, 255])
    assert list(verify(grown)) == []


def test_lyrics_that_are_no_utf8_are_read(tmp_path):
    folder = write_csv(tmp_path / "data", [row("a", text="", text_path="a.txt"), row("b", text="", text_path="b.txt")])
    (folder / "a.txt").write_bytes("d\xe9j\xe0 vu".encode("latin-1"))
    (folder / "b.txt").write_bytes("\ufeffdéjà vu".encode())
    source = open_source(folder, DataConfig())
    assert source.raw(0, "text") == source.raw(1, "text") == RawText("déjà vu")


# The split parquet


def write_split_parquet(demo_data: Path, folder: Path, row_group_size: int = 7, shuffle_media: bool = True) -> Path:
    """The songs of a demo folder in the user's own layout: blobs for most, files for some, and one of each left out."""
    folder.mkdir()
    with (demo_data / "segments.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    meta: dict[str, list] = {name: [] for name in USER_COLUMNS}
    blobs: dict[str, list] = {"audio_waveform": [], "audio_sample_rate": [], "midi_binary": []}
    for number, r in enumerate(rows):
        as_file = number % 5 == 0  # blob null, file on disk
        start, end = float(r["start_seconds"]), float(r["end_seconds"])
        meta["segment_id"].append(r["segment_id"])
        meta["song_id"].append(r["group"])
        meta["lyric_text"].append((demo_data / r["text_path"]).read_text("utf-8") if r["text_path"] else None)
        meta["start_seconds"].append(start)
        meta["end_seconds"].append(end)
        meta["has_audio"].append(bool(r["audio_path"]))
        meta["has_midi"].append(bool(r["midi_path"]))
        meta["mood"].append(r["mood"] or None)
        meta["energy"].append(float(r["energy"]) if r["energy"] else None)
        samples = rate = midi = audio_file = midi_file = None
        if r["audio_path"]:
            whole, rate = soundfile.read(demo_data / r["audio_path"], dtype="float32")
            cut = whole[round(start * rate) : round(end * rate)]
            if as_file:
                audio_file, rate = f"{r['segment_id']}.wav", None
                soundfile.write(folder / audio_file, cut, 22050, subtype="PCM_16")
            else:
                samples = cut.astype("<f4").tobytes()
        if r["midi_path"]:
            content = (demo_data / r["midi_path"]).read_bytes()
            if as_file:
                midi_file = f"{r['segment_id']}.mid"
                (folder / midi_file).write_bytes(content)
            else:
                midi = content
        meta["segment_audio_file"].append(audio_file)
        meta["midi_file"].append(midi_file)
        blobs["audio_waveform"].append(samples)
        blobs["audio_sample_rate"].append(rate)
        blobs["midi_binary"].append(midi)
    metadata = pa.table(meta)
    media = metadata
    types = {"audio_waveform": pa.binary(), "audio_sample_rate": pa.int32(), "midi_binary": pa.binary()}
    for name, values in blobs.items():
        media = media.append_column(name, pa.array(values, types[name]))
    if shuffle_media:
        media = media.take(np.random.default_rng(0).permutation(len(rows)))
    pq.write_table(metadata, folder / "songs_metadata.parquet")
    pq.write_table(media, folder / "songs_media.parquet", row_group_size=row_group_size)
    return folder


USER_COLUMNS = (
    "segment_id",
    "song_id",
    "lyric_text",
    "start_seconds",
    "end_seconds",
    "has_audio",
    "has_midi",
    "segment_audio_file",
    "midi_file",
    "mood",
    "energy",
)


@pytest.mark.parametrize("shuffle_media", [False, True])
def test_the_same_songs_as_split_parquet_give_the_same_store(demo_data, tmp_path, run_cli, monkeypatch, shuffle_media):
    split_data = write_split_parquet(demo_data, tmp_path / "parquet", shuffle_media=shuffle_media)
    stores = []
    for name, data in (("folder", demo_data), ("parquet", split_data)):
        (tmp_path / f"project-{name}").mkdir()
        monkeypatch.chdir(tmp_path / f"project-{name}")
        output = run_cli("ingest", data, "--set", "split.stratify_by=mood").output
        assert "error" not in output and "warning" not in output
        for encoder in ("lsa", "mel_stats", "midi_stats"):
            run_cli("featurize", "--encoder", encoder, "--workers", "0")
        stores.append(open_store("features.zarr"))
    one, two = stores
    assert one.source["layout"] == "folder" and two.source["layout"] == "split_parquet"
    for column in one.segment_columns():
        np.testing.assert_array_equal(one.segment_column(column), two.segment_column(column), err_msg=column)
    assert one.label_names() == two.label_names() == ["mood", "energy"]
    for label in one.label_names():
        np.testing.assert_array_equal(one.label(label), two.label(label))
    assert (one.split("default").parts == two.split("default").parts).all()
    assert one.features() == two.features() == ["audio/mel_stats", "midi/midi_stats", "text/lsa"]
    for name in one.features():
        assert one[name].fingerprint == two[name].fingerprint
        np.testing.assert_array_equal(one[name].status, two[name].status)
        np.testing.assert_array_equal(one[name].vectors[:], two[name].vectors[:], err_msg=name)
        assert one[name].present.sum() > 10
    assert two["audio/mel_stats"].present.sum() == 41  # 48 less 15%, the shares of the demo


def test_media_is_read_lazily_and_only_the_asked_column(demo_data, tmp_path, monkeypatch):
    folder = write_split_parquet(demo_data, tmp_path / "parquet")
    read: list[tuple[str, ...]] = []
    original = pq.ParquetFile.iter_batches

    def spy(self, *args, **kwargs):
        read.append(tuple(kwargs["columns"]))
        return original(self, *args, **kwargs)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", spy)
    found = check(folder, DataConfig())
    assert {p.severity for p in found.problems} <= {Severity.NOTE}
    # audio, its rate and MIDI, of those whose lengths are looked at and of those that are measured
    assert all(len(columns) == 1 for columns in read) and len(read) <= 3 * (BLOBS_LOOKED_AT + PAIRS_MEASURED)
    read.clear()
    for number in range(len(found.source)):
        found.source.raw(number, "midi")
    assert set(read) == {("midi_binary",)}


def test_flags_blobs_and_files_that_contradict_each_other(tmp_path):
    folder = tmp_path / "parquet"
    folder.mkdir()
    (folder / "there.mid").write_bytes(b"MThd")
    metadata = pa.table(
        {
            "segment_id": ["flag-only", "file-despite-flag", "blob-despite-flag", "in-no-media", "fine"],
            "song_id": ["a", "b", "c", "d", "e"],
            "lyric_text": ["la"] * 5,
            "has_midi": [True, False, False, True, True],
            "midi_file": [None, "there.mid", None, None, None],
        }
    )
    pq.write_table(metadata, folder / "x_metadata.parquet")
    media = metadata.slice(0, 3).append_column("midi_binary", pa.array([None, None, b"blob"], pa.binary()))
    rest = metadata.slice(4).append_column("midi_binary", pa.array([b"blob"], pa.binary()))
    pq.write_table(pa.concat_tables([media, rest]), folder / "x_media.parquet")
    found = check(folder, DataConfig())
    assert {p.what: (p.severity, p.count) for p in found.problems} == {
        "has_midi, but the id is in no media file": (Severity.WARNING, 1),
        "has_midi is false, but the file exists": (Severity.NOTE, 1),
        "no label column": (Severity.WARNING, 1),
    }
    source = found.source
    for number in (0, 3):
        with pytest.raises(UnreadableInput, match="has_midi is true, but"):
            source.raw(number, "midi")
    assert source.raw(1, "midi").path.name == "there.mid"
    assert source.raw(2, "midi") is None and source.raw(4, "midi").data == b"blob"


def test_several_pairs_of_parquet_are_one_dataset(demo_data, tmp_path):
    folder = write_split_parquet(demo_data, tmp_path / "parquet", shuffle_media=False)
    whole = open_source(folder, DataConfig())
    parts = tmp_path / "parts"
    parts.mkdir()
    for kind in ("metadata", "media"):
        table = pq.read_table(folder / f"songs_{kind}.parquet")
        for number, start in enumerate((0, 20)):
            pq.write_table(table.slice(start, 20 if number == 0 else None), parts / f"{number}_{kind}.parquet")
    for file in folder.glob("*.wav"):
        (parts / file.name).write_bytes(file.read_bytes())
    for file in folder.glob("*.mid"):
        (parts / file.name).write_bytes(file.read_bytes())
    joined = open_source(parts, DataConfig())
    assert joined.ids == whole.ids
    assert [joined.raw(r, "audio").digest() if joined.flags["audio"][r] else None for r in range(len(joined))] == [
        whole.raw(r, "audio").digest() if whole.flags["audio"][r] else None for r in range(len(whole))
    ]


def test_ingest_as_json(project, demo_data, run_cli):
    result = json.loads(run_cli("ingest", demo_data, "--json", "--set", "model.targets=[{name: mood}]").stdout)
    assert result["segments"] == 48 and result["present"] == {"text": 45, "audio": 41, "midi": 21}
    assert result["split"] == "default" and result["labels"] == ["mood", "energy"]


def test_times_may_be_timecodes_or_stamps(project, demo_data, run_cli):
    """The same songs with SMPTE timecodes at 25 a second, and with LRC stamps; without the rate, a clear line."""
    root = shutil.copytree(demo_data, project / "songs")
    with (root / "segments.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    expected = [float(row["start_seconds"]) for row in rows]
    written = {"smpte": lambda s: seconds_to_smpte(s, "25", 100), "lrc": lambda s: seconds_to_lrc(s, 3)}
    for kind, write in written.items():
        stamped = [{**row, **{key: write(float(row[key])) for key in ("start_seconds", "end_seconds")}} for row in rows]
        with (root / "segments.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(stamped)
        store = project / f"{kind}.zarr"
        if kind == "smpte":
            output = run_cli("ingest", root, "--store", store, code=2).output
            assert "time that is no number" in output and "data.timecode_rate=25" in output
        run_cli("ingest", root, "--store", store, "--set", "data.timecode_rate=25")
        np.testing.assert_allclose(
            open_store(store).segment_column("start_seconds"), expected, atol={"smpte": 2e-4, "lrc": 5e-4}[kind]
        )
        assert open_store(store).source["timecode_rate"] == "25"
