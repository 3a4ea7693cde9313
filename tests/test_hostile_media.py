"""Hundreds of mutated and crafted media files, as `cli featurize` meets them; `benchmarks.hostile_media` has 10,000."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from benchmarks.hostile_media import FORMATS, Medium, write_media
from featurize.limits import MAX_AUDIO_BYTES, MAX_MIDI_BYTES, MAX_TEXT_BYTES
from featurize.segments import RawAudio, RawMidi, UnreadableInput, read_limited
from stores import open_store
from stores.feature import Status
from stores.verify import verify

N_FILES = 120
SLOW = ("sample rate 1", "running status for ever")  # half an hour of audio, 200,000 notes: read, and then encoded


def write_table(media: list[Medium]) -> None:
    with Path("segments.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["segment_id", "group", "audio_path", "midi_path"])
        for row, medium in enumerate(media):
            paths = [f"media/{medium.path.name}" if FORMATS[medium.kind] == kind else "" for kind in ("audio", "midi")]
            rows.writerow([f"s{row}", f"g{row}", *paths])


def test_each_row_is_present_absent_or_failed_with_a_reason(project, run_cli):
    media = [medium for medium in write_media(project / "media", N_FILES, seed=1) if medium.what not in SLOW]
    write_table(media)
    run_cli("ingest", ".")
    limits = ("--set", "preprocessing.row_seconds=60", "--set", "preprocessing.row_gib=1", "--workers", "1")
    for encoder in ("mel_stats", "midi_stats"):
        run_cli("featurize", "--encoder", encoder, *limits)
    store = open_store("features.zarr")
    assert list(verify(store)) == []
    for feature, modality in (("audio/mel_stats", "audio"), ("midi/midi_stats", "midi")):
        is_kind = np.array([FORMATS[medium.kind] == modality for medium in media])
        status, reasons = store[feature].status, store[feature].failures
        assert (status[~is_kind] == Status.ABSENT).all() and (status != Status.PENDING).all()
        for medium, state, reason in zip(media, status, reasons, strict=True):
            assert (state == Status.FAILED) == bool(reason) and "\n" not in reason, (medium, reason)
            assert "died" not in reason and "not prepared within" not in reason, (medium, reason)
            if medium.what == "valid" and FORMATS[medium.kind] == modality:
                assert state == Status.PRESENT, (medium, reason)
            if medium.what == "a sparse file of a terabyte" and FORMATS[medium.kind] == modality:
                assert "has 1,000,000,000,000 bytes; at most" in reason
        counts = np.bincount(status[is_kind], minlength=4)
        assert counts[Status.PRESENT] >= 5 and counts[Status.FAILED] >= 5  # both were tried


@pytest.mark.parametrize(("raw", "most"), [(RawAudio, MAX_AUDIO_BYTES), (RawMidi, MAX_MIDI_BYTES)])
def test_a_file_that_is_too_large_is_refused_before_it_is_read(tmp_path, raw, most):
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(most + 1)
    with pytest.raises(UnreadableInput, match=f"at most {most:,} are read"):
        raw(path=path).digest()
    with pytest.raises(UnreadableInput, match=f"at most {MAX_TEXT_BYTES:,} are read"):
        read_limited(path, MAX_TEXT_BYTES)
