"""500 damaged MIDI files, and some that are made to hurt: each is read or refused in one line.

They are read in a process of their own, whose exit code, memory and outcomes are looked at afterwards. A watchdog ends
it, with a traceback, should one file take longer than `LIMIT_SECONDS`.
"""

from __future__ import annotations

import faulthandler
import json
import random
import struct
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from featurize.limits import MAX_MIDI_BYTES
from featurize.midi import MAX_DURATION_SECONDS, Score, read_midi
from featurize.midi_chunks import MAX_TRACKS, split_chunks
from featurize.midi_events import NOTE_FIELDS, Events, read_with_mido, read_with_symusic
from featurize.piano_roll import piano_roll
from featurize.segments import RawMidi, UnreadableInput

N_DAMAGED = 500
LIMIT_SECONDS = 20  # of one file; the slowest takes some three
N_AGAIN = 2  # times that the damaged files are read again, to see whether memory grows
MAX_GROWTH_MIB = 2  # from the first time to the last: 2 KiB each time that a file is read

STATM = Path("/proc/self/statm")

END_OF_TRACK = b"\x00\xff\x2f\x00"
FAR = b"\xff\xff\xff\x7f"  # the longest delta time, or a length of 256 MiB


def smf(*tracks: bytes, format: int = 1, division: int = 480, count: int | None = None) -> bytes:
    header = struct.pack(">IHHH", 6, format, len(tracks) if count is None else count, division)
    return b"MThd" + header + b"".join(b"MTrk" + struct.pack(">I", len(track)) + track for track in tracks)


def whole_files(folder: Path) -> list[bytes]:
    """Demo songs, and files written by hand that have what those lack."""
    song = [path.read_bytes() for path in sorted(folder.glob("*.mid"))]
    assert song
    scale = b"".join(bytes([20, 0x90, pitch, 64, 20, pitch, 0]) for pitch in range(40, 90))
    setup = b"\x00\xff\x58\x04\x06\x03\x18\x08\x00\xff\x51\x03\x07\xa1\x20\x83\x60\xff\x51\x03\x03\xa1\x20"
    text = b"\x00\xff\x03\x04name\x05\xff\x05\x07lyrics \x00\xf0\x05\x7e\x7f\x09\x01\xf7\x00\xc3\x28\x00\xe3\x00\x40"
    unended = b"\x00\x99\x24\x40" + b"\x30\x24\x40" * 20
    return [
        *song,
        smf(setup + text + scale + END_OF_TRACK, format=0),
        smf(setup + END_OF_TRACK, scale + END_OF_TRACK, unended + END_OF_TRACK),
        smf(text + scale + END_OF_TRACK, setup + scale + END_OF_TRACK, format=2),
        smf(scale + unended + END_OF_TRACK, division=0xE728),
        b"RIFF\x00\x01\x00\x00RMIDdata\x00\x01\x00\x00" + smf(setup + scale + END_OF_TRACK),
    ]


def damaged(whole: bytes, chance: random.Random) -> bytes:
    """One to three damages: bytes changed, cut out, doubled or put in; the end cut off; fields that lie."""
    data = bytearray(whole)
    for _ in range(chance.randint(1, 3)):
        at, length = chance.randrange(len(data)), chance.choice([1, 2, 4, 30])
        kind = chance.choice(["bytes", "bytes", "bytes", "out", "twice", "in", "end", "field", "field", "length"])
        if kind == "bytes":
            for _ in range(chance.choice([1, 1, 3, 20])):
                data[chance.randrange(len(data))] = chance.choice([0, 0x7F, 0x80, 0xFF, chance.randrange(256)])
        elif kind == "out":
            del data[max(at, 1) : at + length]
        elif kind == "twice":
            data[at:at] = data[at : at + length]
        elif kind == "in":
            data[at:at] = chance.choice([FAR, END_OF_TRACK, b"MTrk", b"\xf0", b"\xff\x51", chance.randbytes(length)])
        elif kind == "end":
            del data[max(at, 1) :]
        elif kind == "field":  # of the header: its length, format, count of tracks, division
            field = data.find(b"MThd") + chance.choice([4, 8, 10, 12])
            data[field : field + 2] = chance.choice([b"\x00\x00", b"\x00\x01", b"\x00\x02", b"\xff\xff", b"\x7f\xff"])
        else:  # of a track
            tracks = [i for i in range(len(data)) if data[i : i + 4] == b"MTrk"] or [0]
            field = chance.choice(tracks) + 4
            stated = int.from_bytes(data[field : field + 4], "big")
            lie = chance.choice([0, 1, stated - 1, stated + 1, stated + 8, 2**31, 2**32 - 1])
            data[field : field + 4] = (lie % 2**32).to_bytes(4, "big")
    if chance.random() < 0.8:
        mend_lengths(data)
    return bytes(data)


def mend_lengths(data: bytearray) -> None:
    """Let each track be as long as it is, so that the damage gets as far as the events."""
    starts = [i for i in range(len(data) - 7) if data[i : i + 4] == b"MTrk"]
    for start, end in pairwise([*starts, len(data)]):
        data[start + 4 : start + 8] = max(end - start - 8, 0).to_bytes(4, "big")


def all_damaged(folder: Path) -> Iterator[bytes]:
    whole = whole_files(folder)
    for seed in range(N_DAMAGED):
        chance = random.Random(seed)
        yield damaged(chance.choice(whole), chance)


def bombs() -> dict[str, bytes]:
    """Small or large files that ask for far more than their size."""
    strikes = b"\x00\x90\x3c\x40" + b"\x00\x3c\x40" * 100_000
    return {
        "a million and more notes": smf(b"\x00\x90\x3c\x40" + b"\x00\x3c\x40\x00\x3c\x00" * 1_100_000 + END_OF_TRACK),
        "one key struck and never left": smf(strikes + END_OF_TRACK),
        "one key struck, then left as often": smf(strikes + b"\x00\x3c\x00" * 100_000 + END_OF_TRACK),
        "unended notes on all keys": smf(
            b"".join(bytes([0, 0x90 | i % 16, i // 16 % 128, 64]) for i in range(16 * 128 * 5)) + END_OF_TRACK
        ),
        "tracks upon tracks": smf(*[b"\x00\x90\x3c\x40\x00\x3c\x00" + END_OF_TRACK] * 65_535),
        "tracks with unended notes": smf(*[b"\x00\x90\x3c\x40" + END_OF_TRACK] * MAX_TRACKS),
        "pieces in turn": smf(*[b"\x00\x90\x3c\x40\x60\x3c\x00" + END_OF_TRACK] * MAX_TRACKS, format=2),
        "days of silence": smf((FAR + b"\xb0\x07\x64") * 3 + b"\x00\x90\x3c\x40\x60\x3c\x00" + END_OF_TRACK),
        "one delta time of a megabyte": smf(b"\xff" * 1_000_000 + b"\x00\x90\x3c\x40" + END_OF_TRACK),
        "delta times just short enough": smf((b"\xff" * 4095 + b"\x00\xb0\x07\x64") * 200 + b"\x00\x90\x3c\xff"),
        "a text that claims 256 MiB": smf(b"\x00\xff\x01" + FAR + b"text" + END_OF_TRACK),
        "tempo changes": smf(b"\x01\xff\x51\x03\x00\x00\x01" * 1_000_000 + END_OF_TRACK),
        "markers": smf(b"\x00\xff\x06\x01m" * 1_000_000 + END_OF_TRACK),
        "the largest file, of nothing": smf(bytes(MAX_MIDI_BYTES - 22)),
        "too large": smf(bytes(MAX_MIDI_BYTES)),
        "bytes above 127 alone": smf(b"\xff" * 4_000_000),
        "headers alone": b"MThd" * 1_000_000,
    }


def outcome(data: bytes) -> str:
    """ "read", or the reason why not. Fails on any score or reason that is not as promised."""
    try:
        score = read_midi(RawMidi(data=data, start_seconds=0.0, end_seconds=30.0))
    except UnreadableInput as error:
        reason = str(error)
        assert reason and reason.isprintable() and len(reason) < 600, reason
        return reason
    check(score)
    roll = piano_roll(score)
    assert roll.n_shown + roll.n_merged + roll.n_beyond == len(score)
    return "read"


def check(score: Score) -> None:
    assert np.isfinite(score.offset_seconds).all()
    assert (score.onset_seconds >= 0).all() and (score.offset_seconds <= MAX_DURATION_SECONDS).all()
    assert (score.offset_seconds >= score.onset_seconds).all()
    for field in (score.pitch, score.velocity, score.program):
        assert ((field >= 0) & (field < 128)).all()
    assert (score.velocity > 0).all()
    assert (np.diff(score.tempo_seconds) > 0).all() and (score.tempo_bpm > 0).all()
    assert (score.time_signatures > 0).all()


def agreement(data: bytes) -> str:
    """Whether both parsers find the same: "same" or "different"; "one" or "none" where they do not both read."""
    found = []
    for reader in (read_with_symusic, read_with_mido):
        try:
            found.append(as_lists(reader(split_chunks(data).tracks)))
        except Exception:  # of a dozen kinds; `outcome` looks at what becomes of them
            continue
    if len(found) < 2:
        return ("none", "one")[len(found)]
    return "same" if found[0] == found[1] else "different"


def as_lists(events: Events) -> tuple:
    unended = events.notes.get("is_unended", np.zeros(len(events.notes["onset"]), bool))
    notes = sorted(zip(*(events.notes[field].tolist() for field in NOTE_FIELDS), unended.tolist(), strict=True))
    return notes, events.tempos.tolist(), events.time_signatures.tolist(), events.end


def resident_mib() -> float:
    """What this process holds; 0 where the system does not tell."""
    if not STATM.exists():
        return 0.0
    import resource

    return int(STATM.read_text().split()[1]) * resource.getpagesize() / 2**20


def main(folder: str) -> None:
    """In a process of its own: the outcome of every damaged file and bomb, and the memory after each time round."""
    files = list(all_damaged(Path(folder)))
    memory = []
    for _ in range(1 + N_AGAIN):
        outcomes = [watched_outcome(data) for data in files]
        memory.append(resident_mib())
    agreements = [agreement(data) for data in files]
    hurt = {name: watched_outcome(data) for name, data in bombs().items()}
    print(json.dumps({"outcomes": outcomes, "agreements": agreements, "memory_mib": memory, "bombs": hurt}))


def watched_outcome(data: bytes) -> str:
    faulthandler.dump_traceback_later(LIMIT_SECONDS, exit=True)
    try:
        return outcome(data)
    finally:
        faulthandler.cancel_dump_traceback_later()


@pytest.fixture(scope="module")
def report(demo_data: Path) -> dict:
    command = [sys.executable, "-c", "import sys; from tests.test_midi_hostile import main; main(sys.argv[1])"]
    root = Path(__file__).parents[1]
    done = subprocess.run([*command, str(demo_data / "midi")], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads(done.stdout))


def test_every_damaged_file_is_read_or_refused(report: dict) -> None:
    outcomes = report["outcomes"]
    assert len(outcomes) == N_DAMAGED
    n_read = outcomes.count("read")
    assert N_DAMAGED / 5 < n_read < N_DAMAGED * 4 / 5  # both were tried
    for reason in ("cut short", "no MThd", "format is", "time division", "not a readable MIDI file (symusic: "):
        assert any(reason in outcome for outcome in outcomes), reason


def test_both_parsers_find_the_same_in_what_both_read(report: dict) -> None:
    assert report["agreements"].count("same") > N_DAMAGED / 10
    assert report["agreements"].count("different") <= 1  # running status after system exclusive has no meaning


@pytest.mark.skipif(not STATM.exists(), reason="only Linux tells the memory of a process in /proc")
def test_damaged_files_leak_no_memory(report: dict) -> None:
    memory = report["memory_mib"]
    assert len(memory) == 1 + N_AGAIN and memory[0] > 0
    assert memory[-1] - memory[0] < MAX_GROWTH_MIB, memory


BOMB_OUTCOMES = {
    "a million and more notes": "has 1,100,001 notes; at most 1,000,000 are read",
    "one key struck and never left": "read",
    "one key struck, then left as often": "read",
    "unended notes on all keys": "read",
    "tracks upon tracks": "more than 2,048 tracks",
    "tracks with unended notes": "read",
    "pieces in turn": "read",
    "days of silence": "lasts",
    "one delta time of a megabyte": "not tried",
    "delta times just short enough": "not a readable MIDI file",
    "a text that claims 256 MiB": "not a readable MIDI file",
    "tempo changes": "read",
    "markers": "read",
    "the largest file, of nothing": "not tried",
    "too large": "has 16,777,238 bytes; at most 16,777,216 are read",
    "bytes above 127 alone": "not tried",
    "headers alone": "header states",
}


@pytest.mark.parametrize("name", bombs())
def test_bombs_are_read_or_refused(report: dict, name: str) -> None:
    assert BOMB_OUTCOMES[name] in report["bombs"][name]


def test_damage_is_the_same_every_time(demo_data: Path) -> None:
    one, other = (list(all_damaged(demo_data / "midi")) for _ in range(2))
    assert one == other
    assert len(set(one)) > 0.95 * N_DAMAGED
