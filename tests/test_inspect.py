"""`cli inspect` on raw data and on stores: data broken on purpose, and what it says of each kind of trouble."""

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

from featurize.survey.lyrics import script_of
from tests.conftest import MOOD_SAMPLE, needs_mood_sample

COLUMNS = ("segment_id", "group", "text", "audio_path", "midi_path", "start_seconds", "end_seconds", "mood")
SECONDS = 1.0


class Folder:
    """A dataset of 20 songs with two segments each, whole until somebody breaks it."""

    def __init__(self, root: Path):
        self.root = root
        rng = np.random.default_rng(0)
        self.rows = [
            {
                "segment_id": f"s{number:02d}",
                "group": f"song{number // 2:02d}",
                "text": f"words of line {number} that are sung in the night",
                "audio_path": f"{number:02d}.wav",
                "midi_path": "",
                "start_seconds": "0",
                "end_seconds": str(SECONDS),
                "mood": ("happy", "sad")[number // 2 % 2],
            }
            for number in range(40)
        ]
        self.root.mkdir()
        for number in range(40):
            self.audio(number, 0.1 * rng.standard_normal(16_000).clip(-3, 3))

    def audio(self, number: int, samples: np.ndarray, rate_hz: int = 16_000) -> None:
        soundfile.write(self.root / f"{number:02d}.wav", samples, rate_hz)

    def write(self) -> Path:
        with (self.root / "segments.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(self.rows)
        return self.root


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path / "songs")


@pytest.fixture
def inspected(run_cli, project):
    """What `cli inspect` says of a folder, as JSON; costs are looked at by tests of their own."""

    def inspect(path: Path, *arguments: str) -> dict:
        return json.loads(run_cli("inspect", path, "--json", "--no-costs", *arguments).output)

    return inspect


def problems_of(found: dict) -> dict[str, dict]:
    return {problem["what"]: problem for problem in found["problems"]}


def test_whole_data_has_no_problem(folder, inspected, run_cli):
    found = inspected(folder.write())
    assert found["problems"] == [] and found["segments"] == 40
    assert list(found["tables"]) == [
        "coverage",
        "label.mood",
        "split.default.mood",
        "lyrics",
        "sample_rates",
        "durations",
        "levels",
    ]
    assert found["tables"]["durations"]["rows"][0]["median"] == pytest.approx(SECONDS)
    assert "No problem was found." in run_cli("inspect", folder.root, "--no-costs").output


def silence(folder):
    folder.audio(3, np.zeros(16_000))
    folder.audio(4, 1e-5 * np.ones(16_000))


def clipping(folder):
    folder.audio(5, np.sign(np.sin(np.arange(16_000) / 7)))


def a_wrong_rate(folder):
    folder.audio(6, 0.1 * np.ones(8_000), 8_000)


def a_missing_file(folder):
    (folder.root / "07.wav").unlink()


def no_audio_at_all(folder):
    (folder.root / "08.wav").write_text("this is no audio")


def times_beyond_the_end(folder):
    folder.rows[9] |= {"start_seconds": "5", "end_seconds": "6"}


def a_blink(folder):
    folder.rows[10] |= {"end_seconds": "0.1"}


def lyrics_that_say_nothing(folder):
    folder.rows[11]["text"] = "[Instrumental]"
    folder.rows[12]["text"] = "..."


def another_script(folder):
    folder.rows[13]["text"] = "Я помню чудное мгновенье"


def a_wrong_encoding(folder):
    folder.rows[14]["text"] = "über den Wolken".encode().decode("latin-1")


def a_cover(folder):
    folder.rows[15]["text"] = folder.rows[20]["text"]


def a_whole_song(folder):
    folder.rows[16]["text"] = "na " * 400


def a_rare_class(folder):
    folder.rows[0]["mood"] = "angry"


def telling_absence(folder):
    for row in folder.rows:
        if row["mood"] == "happy":
            row["audio_path"] = ""


def one_class(folder):
    for row in folder.rows[2:]:
        row["mood"] = "happy"
    folder.rows[0]["mood"] = folder.rows[1]["mood"] = "sad"


def duplicate_ids(folder):
    folder.rows[17]["segment_id"] = "s00"


BROKEN = [
    (silence, "silent audio (of 40 decoded)", 2, "'s03': digital silence"),
    (clipping, "audio that is clipped (of 40 decoded)", 1, "'s05'"),
    (a_wrong_rate, "audio file of an unusual sample rate", 1, "'s06': 8,000 Hz"),
    (a_wrong_rate, "audio file below 16,000 Hz", 1, "'s06': 8,000 Hz"),
    (a_missing_file, "audio file that does not exist", 1, "'s07': 07.wav"),
    (no_audio_at_all, "audio file that cannot be read", 1, "'s08': 08.wav"),
    (times_beyond_the_end, "segment that begins after its audio ends", 1, "'s09': -4.00 s"),
    (a_blink, "segment shorter than 0.5 s", 1, "'s10': 0.10 s"),
    (lyrics_that_say_nothing, "lyric that is empty, or only says that there is none", 2, "'s11': '[Instrumental]'"),
    (another_script, "lyric that is not in LATIN script", 1, "'s13' (CYRILLIC)"),
    (a_wrong_encoding, "lyric with signs of a wrong encoding", 1, "'s14'"),
    (a_cover, "lyric that stands in several groups", 1, "'s15' = 's20'"),
    (a_whole_song, "lyric of more than 350 words", 1, "'s16': 400 words"),
    (a_rare_class, "mood class in fewer than 3 groups", 1, "'angry' (1)"),
    (a_rare_class, "mood class without a segment in test of split default", 1, "'angry'"),
    (telling_absence, "mood class whose coverage differs", 2, "audio of 'happy': 0%, of the others 100%"),
    (one_class, "mood is almost one class", 1, "'happy' has 95%"),
    (duplicate_ids, "duplicate id", 1, "'s00' in rows 1, 18"),
]


@pytest.mark.parametrize(("broken", "what", "count", "example"), BROKEN, ids=[f"{b.__name__}" for b, *_ in BROKEN])
def test_each_kind_of_trouble_is_named_with_rows_and_a_remedy(folder, inspected, broken, what, count, example):
    broken(folder)
    problem = problems_of(inspected(folder.write()))[what]
    assert problem["count"] == count and example in problem["examples"] and len(problem["remedy"]) > 20
    severities = [p["severity"] for p in inspected(folder.root)["problems"]]
    assert severities == sorted(severities, key=["error", "warning", "note"].index)


def test_nothing_is_written_and_errors_do_not_end_it(folder, project, run_cli):
    duplicate_ids(folder)
    silence(folder)
    output = run_cli("inspect", folder.write(), "--no-costs").output
    assert output.startswith("error: 1 x duplicate id: 's00' in rows 1, 18")
    assert "2 x silent audio" in output and "Next: mend the error, then cli ingest" in output
    assert list(project.iterdir()) == []


def test_a_sample_is_drawn_with_a_fixed_seed_and_says_its_size(folder, inspected):
    found = [inspected(folder.write(), "--sample", "10") for _ in range(2)]
    assert found[0] == found[1]
    assert found[0]["tables"]["levels"]["title"] == "audio levels of a sample (10 drawn with seed 0)"
    assert found[0]["tables"]["levels"]["rows"][0]["decoded"] == 10


def test_the_data_of_the_configuration_is_inspected_until_there_is_a_store(folder, project, run_cli):
    Path("config.yaml").write_text(f"data: {{path: '{folder.write()}'}}\n")
    assert "audio files by sample rate" in run_cli("inspect", "--no-costs").output
    run_cli("ingest")
    output = run_cli("inspect").output
    assert "features.zarr: 40 segments in 20 groups" in output and "coverage by mood: 2 classes" in output
    assert "audio files by sample rate" in run_cli("inspect", folder.root, "--no-costs").output


def test_costs_are_measured_for_what_needs_no_download_and_what_is_configured(project, demo_data, run_cli):
    setting = "model.midi_encoder={type: event}"
    arguments = ("inspect", demo_data, "--json", "--sample", "4")
    costs = json.loads(run_cli(*arguments, "--set", setting).output)["tables"]["costs"]["rows"]
    by_encoder = {row["encoder"]: row for row in costs}
    assert list(by_encoder) == ["text/lsa", "audio/mel_stats", "midi/event", "midi/midi_stats"]
    assert by_encoder["midi/event"]["seconds"] is None and "train-encoder" in by_encoder["midi/event"]["remark"]
    audio = by_encoder["audio/mel_stats"]
    assert audio["seconds"] > 0 and audio["MB"] == pytest.approx(48 * (audio["width"] * 2 + 17) / 1e6)


def test_a_split_parquet_with_blobs(project, tmp_path, inspected):
    ids = [f"s{number}" for number in range(12)]
    tone = np.sin(np.arange(8000) / 5).astype("<f4")
    blobs = [None if number == 2 else (0 * tone if number == 3 else tone).tobytes() for number in range(12)]
    songs = [f"song{number // 2}" for number in range(12)]
    metadata = pa.table({"segment_id": ids, "song_id": songs, "has_audio": [blob is not None for blob in blobs]})
    media = pa.table(
        {"segment_id": ids, "audio_waveform": pa.array(blobs, pa.binary()), "audio_sample_rate": [8000] * 12}
    )
    pq.write_table(metadata, tmp_path / "x_metadata.parquet")
    pq.write_table(media, tmp_path / "x_media.parquet")
    found = inspected(tmp_path / "x_metadata.parquet")
    assert found["layout"] == "split_parquet"
    silent = problems_of(found)["silent audio (of 11 decoded)"]
    assert silent["examples"] == ["'s3': digital silence"]
    assert found["tables"]["levels"]["title"] == "audio levels of a sample (the first 11)"


def test_a_store_names_what_a_split_lacks_and_what_is_pending(folder, project, run_cli):
    from stores import open_store
    from stores.store import Part, Split

    run_cli("ingest", folder.write())
    run_cli("featurize", "--encoder", "lsa")
    store = open_store("features.zarr")
    happy = np.array([mood == "happy" for mood in store.label("mood").tolist()])
    parts = np.where(happy, Part.TRAIN, Part.TEST).astype(np.uint8)
    store.write_split(Split("odd", parts, {"method": "by hand", "seed": None, "leaks": False}))
    feature = store["text/lsa"]
    store.tree.write(feature.array_path("status"), 0, np.zeros(7, np.uint8))
    found = json.loads(run_cli("inspect", "--json").output)
    problems = problems_of(found)
    assert problems["mood class without a segment in train of split odd"]["examples"] == ["'sad'"]
    assert problems["text/lsa: row that is not encoded yet"]["count"] == 7
    assert found["tables"]["coverage"]["rows"][0] == {
        "modality": "text",
        "segments": 33,
        "share": "82.5%",
        "groups with all": 16,
        "with some": 1,
        "with none": 3,
    }
    assert found["features"]["text/lsa"]["present"] == 33  # what was there before is there still


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("Hello, 1984!", "LATIN"),
        ("Привет, bro", "CYRILLIC"),
        ("你好世界", "CJK"),
        ("がんばって", "HIRAGANA"),
        ("…", "none"),
    ],
)
def test_the_script_is_that_of_most_letters(text, script):
    assert script_of(text) == script


@needs_mood_sample
def test_real_clips(project, tmp_path, run_cli):
    data = shutil.copytree(MOOD_SAMPLE, tmp_path / "mood-sample")
    found = json.loads(run_cli("inspect", data, "--json", "--no-costs", "--sample", "6").output)
    rates = found["tables"]["sample_rates"]["rows"]
    assert [(row["Hz"], row["format"], row["segments"]) for row in rates] == [(44_100, "MP3", 120)]
    assert found["tables"]["lyrics"]["rows"][0]["script"] == "LATIN"
