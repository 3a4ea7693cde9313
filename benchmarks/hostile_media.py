"""Mutated and crafted WAV, FLAC, MP3, OGG and MIDI, through the path that `cli featurize` reads them by.

    python -m benchmarks.hostile_media --files 10000

Valid files of each format are made here; most of what is read are mutations of them (bits, bytes, cuts, splices, and
lengths that lie), the others are crafted: 10^9 samples declared, chunks in chunks, no channels, sample rates of 4 GHz,
tempo 0, delta times of 2^28, 10^6 tracks, system exclusive without an end, a terabyte of nothing. The same seed makes
the same files. Each is a row: worker processes decode it, resample it and pass it on, within limits of time and memory
that are stated. Counted are the rows that are present, absent, or failed and why; what the slowest took, the most
memory that a worker and this process had, and how many workers died. Exits 1 where a row is lost, this process grows,
or a worker exceeds its limits by more than what it has to begin with.
"""

from __future__ import annotations

import io
import random
import re
import struct
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import click
import mido
import numpy as np
import psutil
import soundfile

from benchmarks import machine
from featurize.audio import load_mono
from featurize.limits import Limits
from featurize.midi import read_midi
from featurize.segments import Raw, RawAudio, RawMidi, UnreadableInput
from featurize.workers import Failure, Preparer, prepare_safely

RATE_HZ = 16_000
SECONDS = 0.5  # of a valid file
FORMATS = {"wav": "audio", "flac": "audio", "mp3": "audio", "ogg": "audio", "mid": "midi"}
SHARE_CRAFTED = 0.15
SHARE_MENDED = 0.8  # of Ogg files, whose every page has a checksum that would keep the decoder from seeing anything
GIB = 2**30

END_OF_TRACK = b"\x00\xff\x2f\x00"
LONGEST_DELTA = b"\xff\xff\xff\x7f"  # 2^28 - 1 ticks


# Valid files


@cache
def valid(kind: str) -> list[bytes]:
    """Small whole files of one format."""
    return _valid_midi() if kind == "mid" else [_sound(kind, *how) for how in _KINDS_OF_SOUND[kind]]


_KINDS_OF_SOUND: dict[str, list[tuple[str, int, int]]] = {  # subtype, channels, sample rate
    "wav": [
        ("PCM_16", 1, 22_050),
        ("PCM_24", 2, 44_100),
        ("FLOAT", 1, 16_000),
        ("ULAW", 1, 8_000),
        ("IMA_ADPCM", 1, 8_000),
    ],
    "flac": [("PCM_16", 1, 22_050), ("PCM_24", 2, 48_000)],
    "mp3": [("MPEG_LAYER_III", 1, 22_050), ("MPEG_LAYER_III", 2, 44_100)],
    "ogg": [("VORBIS", 1, 22_050), ("VORBIS", 2, 44_100), ("OPUS", 1, 48_000)],
}


def _sound(kind: str, subtype: str, channels: int, rate_hz: int) -> bytes:
    time_seconds = np.arange(int(SECONDS * rate_hz)) / rate_hz
    samples = 0.4 * np.sin(2 * np.pi * np.outer(time_seconds, 220 * np.arange(1, channels + 1)))
    content = io.BytesIO()
    soundfile.write(content, samples, rate_hz, subtype=subtype, format=kind.upper())
    return content.getvalue()


def _valid_midi() -> list[bytes]:
    found = []
    for midi_format in (0, 1, 2):
        file = mido.MidiFile(type=midi_format)
        for channel in range(1 if midi_format == 0 else 3):
            track = mido.MidiTrack()
            track += [mido.MetaMessage("set_tempo", tempo=400_000), mido.MetaMessage("time_signature", numerator=6)]
            track += [mido.MetaMessage("lyrics", text="la"), mido.Message("sysex", data=[1, 2, 3])]
            for pitch in range(48, 72):
                track.append(mido.Message("note_on", channel=channel, note=pitch, velocity=70, time=30))
                track.append(mido.Message("note_off", channel=channel, note=pitch, time=200))
            file.tracks.append(track)
        content = io.BytesIO()
        file.save(file=content)
        found.append(content.getvalue())
    return found


# Mutations


def mutated(kind: str, chance: random.Random) -> bytes:
    """One to four damages of a valid file."""
    data = bytearray(chance.choice(valid(kind)))
    for _ in range(chance.randint(1, 4)):
        if len(data) > 12:
            chance.choice(DAMAGES)(data, kind, chance)
    if kind == "ogg" and chance.random() < SHARE_MENDED:
        mend_checksums(data)
    return bytes(data)


def mend_checksums(data: bytearray) -> None:
    """Of each Ogg page, so that the damage gets as far as the decoder."""
    at = data.find(b"OggS")
    while at >= 0 and at + 27 <= len(data):
        end = at + 27 + data[at + 26] + sum(data[at + 27 : at + 27 + data[at + 26]])
        data[at + 22 : at + 26] = bytes(4)
        crc = 0
        for byte in data[at:end]:
            crc = (crc << 8 & 0xFFFFFFFF) ^ _CRC[crc >> 24 ^ byte]
        data[at + 22 : at + 26] = struct.pack("<I", crc)
        at = data.find(b"OggS", at + 4)


def _crc_of(byte: int) -> int:
    crc = byte << 24
    for _ in range(8):
        crc = (crc << 1 ^ (0x04C11DB7 if crc & 2**31 else 0)) & 0xFFFFFFFF
    return crc


_CRC = [_crc_of(byte) for byte in range(256)]


def _bits(data: bytearray, kind: str, chance: random.Random) -> None:
    for _ in range(chance.choice([1, 8, 200])):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def _in_the_header(data: bytearray, kind: str, chance: random.Random) -> None:
    for _ in range(chance.choice([1, 2, 6])):
        data[chance.randrange(min(len(data), 80))] = chance.choice([0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)])


def _number(data: bytearray, kind: str, chance: random.Random) -> None:
    """A length, a rate or a count that lies: in either byte order, near the start."""
    at = chance.randrange(min(len(data) - 8, 120))
    lie = chance.choice([0, 1, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 10**9, 10**6, len(data) * 1000])
    data[at : at + 4] = struct.pack(chance.choice("<>") + "I", lie % 2**32)


def _cut(data: bytearray, kind: str, chance: random.Random) -> None:
    del data[chance.randrange(1, len(data)) :]


def _header_alone(data: bytearray, kind: str, chance: random.Random) -> None:
    del data[chance.choice([12, 22, 36, 44, 60, 100]) :]


def _splice(data: bytearray, kind: str, chance: random.Random) -> None:
    """A piece of another file of any format put in, or put over."""
    other = chance.choice(valid(chance.choice(list(FORMATS))))
    start, at = chance.randrange(len(other)), chance.randrange(len(data))
    piece = other[start : start + chance.choice([4, 64, 4096])]
    data[at : at + chance.choice([0, len(piece)])] = piece


def _out(data: bytearray, kind: str, chance: random.Random) -> None:
    at = chance.randrange(len(data))
    del data[max(at, 1) : at + chance.choice([1, 2, 4, 300])]


def _twice(data: bytearray, kind: str, chance: random.Random) -> None:
    at = chance.randrange(len(data))
    data[at:at] = data[at : at + chance.choice([4, 300, 5000])] * chance.choice([1, 20])


DAMAGES: list[Callable[[bytearray, str, random.Random], None]]
DAMAGES = [_bits, _bits, _in_the_header, _in_the_header, _number, _number, _cut, _header_alone, _splice, _out, _twice]


# Crafted files


def riff(*chunks: tuple[bytes, bytes], length: int | None = None) -> bytes:
    body = b"WAVE" + b"".join(name + struct.pack("<I", len(content)) + content for name, content in chunks)
    return b"RIFF" + struct.pack("<I", len(body) if length is None else length) + body


def wav_format(channels: int = 1, rate_hz: int = 22_050, bits: int = 16, tag: int = 1) -> tuple[bytes, bytes]:
    block = channels * bits // 8
    return b"fmt ", struct.pack("<HHIIHH", tag, channels, rate_hz, rate_hz * block % 2**32, block % 2**16, bits)


def wav(declared: int | None = None, n_bytes: int = 8000, **how: int) -> bytes:
    """declared: the length that the data chunk states."""
    data = bytes(n_bytes)
    stated = struct.pack("<I", n_bytes if declared is None else declared)
    return riff(wav_format(**how)) + b"data" + stated + data


def nested_lists(depth: int) -> bytes:
    inner = b""
    for _ in range(depth):
        inner = b"LIST" + struct.pack("<I", len(inner) + 4) + b"INFO" + inner
    return inner


def flac_header(n_samples: int, rate_hz: int = 44_100, channels: int = 2, bits: int = 16, block: int = 4096) -> bytes:
    packed = rate_hz << 44 | (channels - 1) << 41 | (bits - 1) << 36 | n_samples
    return b"fLaC\x80\x00\x00\x22" + struct.pack(">HH", block, block) + bytes(6) + packed.to_bytes(8, "big") + bytes(16)


def smf(*tracks: bytes, midi_format: int = 1, division: int = 480, count: int | None = None) -> bytes:
    header = struct.pack(">IHHH", 6, midi_format, (len(tracks) if count is None else count) % 2**16, division)
    return b"MThd" + header + b"".join(b"MTrk" + struct.pack(">I", len(track)) + track for track in tracks)


@cache
def crafted(kind: str) -> dict[str, bytes]:
    """Files that are made to hurt, by what they do."""
    if kind == "wav":
        samples = b"data", bytes(8000)
        deep = nested_lists(20_000)
        return {
            "10^9 samples declared": wav(2 * 10**9),
            "4 GiB declared": wav(2**32 - 1),
            "no samples": wav(0, 0),
            "odd number of bytes": wav(7999, 7999),
            "no channels": wav(channels=0),
            "65535 channels": wav(channels=65_535, n_bytes=65_535 * 4),
            "1024 channels": wav(channels=1024, n_bytes=2**20),
            "sample rate 0": wav(rate_hz=0),
            "sample rate 10^6": wav(rate_hz=10**6),
            "sample rate 4 GHz": wav(rate_hz=2**32 - 1),
            "sample rate 1": wav(rate_hz=1, n_bytes=4000),
            "0 bits": wav(bits=0),
            "255 bits": wav(bits=255),
            "no such codec": wav(tag=0x7FFF),
            "lists in lists": riff(wav_format(), (b"LIST", b"INFO" + deep), samples),
            "a million empty chunks": riff(wav_format(), *[(b"junk", b"")] * 1_000_000, samples),
            "data before format": riff(samples, wav_format()),
            "two formats": riff(wav_format(), wav_format(channels=8, bits=32), samples),
            "no data": riff(wav_format()),
            "negative length": riff(wav_format(), samples, length=2**31),
            "NaN": riff(wav_format(bits=32, tag=3), (b"data", np.full(4000, np.nan, "<f4").tobytes())),
            "infinity": riff(wav_format(bits=32, tag=3), (b"data", np.full(4000, np.inf, "<f4").tobytes())),
            "as loud as can be": riff(wav_format(bits=32, tag=3), (b"data", np.full(4000, 3e38, "<f4").tobytes())),
            "nothing": b"",
            "zeros": bytes(100_000),
        }
    if kind == "flac":
        whole = valid("flac")[0]
        return {
            "2^36 samples declared": flac_header(2**36 - 1) + whole[42:],
            "10^9 samples declared": flac_header(10**9),
            "sample rate 0": flac_header(10**6, rate_hz=0) + whole[42:],
            "sample rate 10^6": flac_header(10**6, rate_hz=2**20 - 1) + whole[42:],
            "8 channels stated": flac_header(10**6, channels=8) + whole[42:],
            "blocks of 1": flac_header(10**6, block=1) + whole[42:],
            "a metadata block of 16 MiB": b"fLaC\x04\xff\xff\xff" + bytes(1000),
            "100,000 metadata blocks": b"fLaC"
            + flac_header(0)[4:5].replace(b"\x80", b"\x00")
            + flac_header(0)[5:42]
            + b"\x01\x00\x00\x00" * 100_000,
            "nothing after the name": b"fLaC",
        }
    if kind == "mp3":
        whole = valid("mp3")[0]
        return {
            "an ID3 tag of 256 MiB": b"ID3\x04\x00\x00\x7f\x7f\x7f\x7f" + whole,
            "ID3 tags without an end": b"ID3\x04\x00\x00\x00\x00\x00\x00" * 100_000 + whole,
            "frame headers alone": b"\xff\xfb\x90\x64" * 100_000,
            "bytes 255 alone": b"\xff" * 1_000_000,
            "a thousand times itself": whole * 1000,
        }
    if kind == "ogg":
        whole = valid("ogg")[0]
        page = whole[: 27 + whole[26] + sum(whole[27 : 27 + whole[26]])]
        far = bytearray(whole)
        last = whole.rfind(b"OggS")
        far[last + 6 : last + 14] = struct.pack("<Q", 2**62)
        return {
            "2^62 samples declared": bytes(far),
            "a hundred thousand first pages": page * 100_000,
            "page heads alone": b"OggS" * 250_000,
            "pages of 255 empty packets": (b"OggS\x00\x02" + bytes(20) + b"\xff" + bytes(255)) * 2000,
            "a hundred songs in a chain": whole * 100,
        }
    strike, leave = b"\x00\x90\x3c\x40", b"\x60\x3c\x00"
    note = strike + leave + END_OF_TRACK
    return {
        "tempo 0": smf(b"\x00\xff\x51\x03\x00\x00\x00" + note),
        "the slowest tempo": smf(b"\x00\xff\x51\x03\xff\xff\xff" + strike + LONGEST_DELTA + b"\x3c\x00" + END_OF_TRACK),
        "delta times of 2^28": smf((LONGEST_DELTA + b"\x90\x3c\x40" + LONGEST_DELTA + b"\x3c\x00") * 3 + END_OF_TRACK),
        "many delta times of 2^28": smf((LONGEST_DELTA + b"\x90\x3c\x40") * 1000 + END_OF_TRACK),
        "10^6 tracks": smf(*[END_OF_TRACK] * 1_000_000, count=65_535),
        "65535 tracks stated, one there": smf(note, count=65_535),
        "no tracks stated": smf(note, count=0),
        "a track of 4 GiB stated": smf(note)[:18] + b"\xff\xff\xff\xff" + note,
        "tracks in tracks": b"MThd\x00\x00\x00\x06\x00\x01\x00\x01\x01\xe0" + b"MTrk\x00\xff\xff\xff" * 100_000,
        "running status without a status": smf(b"\x00\x3c\x40" * 1000 + END_OF_TRACK),
        "running status after a meta event": smf(strike + b"\x00\xff\x01\x00" + b"\x00\x3c\x00" + END_OF_TRACK),
        "running status for ever": smf(strike + b"\x00\x3c\x40" * 200_000),
        "system exclusive without an end": smf(b"\x00\xf0" + LONGEST_DELTA + b"\x01" * 100_000),
        "system exclusives that go on": smf(b"\x00\xf0\x02\x01\x02\x00\xf7\x02\x01\x02" * 100_000 + END_OF_TRACK),
        "a meta event of 256 MiB stated": smf(b"\x00\xff\x01" + LONGEST_DELTA + b"x"),
        "a number of a million bytes": smf(b"\xff" * 1_000_000 + b"\x00" + note),
        "division 0": smf(note, division=0),
        "division SMPTE with 0 ticks": smf(note, division=0xE700),
        "time signature 255 to 2^255": smf(b"\x00\xff\x58\x04\xff\xff\x18\x08" + note),
        "format 65535": smf(note, midi_format=65_535),
        "16 MiB of nothing": smf(bytes(16 * 2**20 - 22)),
        "more than 16 MiB": smf(bytes(16 * 2**20)),
        "nothing": b"",
    }  # fmt: skip


# As files


@dataclass(frozen=True)
class Medium:
    """A file, and the row that it is. what: `valid`, `mutated`, or what was crafted."""

    path: Path
    kind: str
    what: str

    def raw(self) -> Raw:
        if FORMATS[self.kind] == "audio":
            return RawAudio(path=self.path, start_seconds=0.0, end_seconds=None)
        return RawMidi(path=self.path, start_seconds=0.0, end_seconds=30.0)


def write_media(folder: Path, n_files: int, seed: int) -> Iterator[Medium]:
    """`n_files` in all, format by format in turn; each is written when it is asked for."""
    folder.mkdir(parents=True, exist_ok=True)
    counts: Counter[str] = Counter()
    for number in range(n_files):
        kind = list(FORMATS)[number % len(FORMATS)]
        chance = random.Random(f"{seed} {number}")
        ready = [*((name, data) for name, data in crafted(kind).items()), *(("valid", data) for data in valid(kind))]
        if counts[kind] < len(ready):  # each once
            what, data = ready[counts[kind]]
        elif chance.random() < SHARE_CRAFTED:
            what, data = (
                "crafted and mutated",
                _damaged_again(chance.choice(list(crafted(kind).values())), kind, chance),
            )
        else:
            what, data = "mutated", mutated(kind, chance)
        counts[kind] += 1
        path = folder / f"{number}.{kind}"
        path.write_bytes(data)
        yield Medium(path, kind, what)
    for kind in FORMATS:  # costs its maker nothing
        path = folder / f"terabyte.{kind}"
        with path.open("wb") as file:
            file.write(valid(kind)[0][:200])
            file.truncate(10**12)
        yield Medium(path, kind, "a sparse file of a terabyte")


def _damaged_again(data: bytes, kind: str, chance: random.Random) -> bytes:
    changed = bytearray(data[:200_000])
    if len(changed) > 120:
        chance.choice(DAMAGES)(changed, kind, chance)
    return bytes(changed)


# Reading


@dataclass(frozen=True)
class Read:
    """What became of a row, from the worker. reason: empty where it is present, `None` where it holds nothing."""

    reason: str | None
    seconds: float


class Reader:
    """As the `prepare` of an encoder begins: hash, decode, cut, resample; or parse and cut."""

    def prepare(self, raw: Raw) -> Read:
        started = time.monotonic()
        found = prepare_safely(_Decoder(), raw)
        if isinstance(found, Failure):
            return Read(found.reason, time.monotonic() - started)
        return Read("" if found else None, time.monotonic() - started)


class _Decoder:
    def prepare(self, raw: Any) -> bool:
        if isinstance(raw, RawAudio):
            samples = load_mono(raw, RATE_HZ)
            assert samples.dtype == np.float32 and len(samples) and np.isfinite(samples).all()
            return True
        score = read_midi(raw)
        assert np.isfinite(score.offset_seconds).all()
        return len(score) > 0


class Watch:
    """The most memory that this process and each of its children had, by looking often."""

    def __init__(self) -> None:
        self.own_bytes = self.worker_bytes = 0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _look(self) -> None:
        own = psutil.Process()
        while not self._stopped.wait(0.05):
            self.own_bytes = max(self.own_bytes, own.memory_info().rss)
            for child in own.children(recursive=True):
                try:
                    self.worker_bytes = max(self.worker_bytes, child.memory_info().rss)
                except psutil.Error:  # it has ended
                    continue


def reason_class(reason: str) -> str:
    """The kind of a reason: without the file's name and the numbers in it."""
    without_name = re.sub(r"^(cannot read )?\S*/", r"\1", reason)
    return re.sub(r"\d[\d,.e+]*", "N", re.sub(r"^(cannot read )?\w+\.\w+:? ?", r"\1", without_name))[:70]


@click.command()
@click.option("--files", type=click.IntRange(1), default=10_000, show_default=True)
@click.option("--workers", type=click.IntRange(1), default=2, show_default=True)
@click.option("--row-seconds", type=float, default=30.0, show_default=True, help="The limit of time.")
@click.option("--row-gib", type=float, default=1.0, show_default=True, help="The limit of memory.")
@click.option("--seed", type=int, default=0, show_default=True)
def main(files: int, workers: int, row_seconds: float, row_gib: float, seed: int) -> None:
    print(machine("soundfile", "symusic", "mido", "numpy"), soundfile.__libsndfile_version__, flush=True)
    started = time.monotonic()
    media: list[Medium] = []
    refused: dict[int, str] = {}
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    reasons: dict[str, Counter[str]] = defaultdict(Counter)
    slowest: dict[str, tuple[float, str]] = defaultdict(lambda: (0.0, ""))
    with tempfile.TemporaryDirectory() as temporary, Watch() as watch:

        def jobs() -> Iterator[tuple[int, Raw]]:
            for row, medium in enumerate(write_media(Path(temporary), files, seed)):
                media.append(medium)
                raw = medium.raw()
                try:
                    raw.digest()  # as `featurize` does first, in its own process
                except UnreadableInput as error:
                    refused[row] = str(error)
                else:
                    yield row, raw

        with Preparer(Reader(), workers, Limits(row_seconds, row_gib)) as preparer:
            outcomes = dict(preparer.run(jobs()))
    for row, medium in enumerate(media):
        outcome = Read(refused[row], 0.0) if row in refused else outcomes.get(row)
        of_kind = counts[medium.kind]
        if outcome is None:
            of_kind["lost"] += 1
            continue
        if isinstance(outcome, Failure):  # the worker did not come to say so
            of_kind["died" if "died" in outcome.reason else "too long"] += 1
            print(f"    {medium.kind}, {medium.what}: {outcome.reason}")
            outcome = Read(outcome.reason, row_seconds)
        elif medium.what not in ("valid", "mutated", "crafted and mutated"):
            print(f"    {medium.kind}, {medium.what}: {_told(outcome)} ({outcome.seconds:.2f} s)")
        of_kind["present" if outcome.reason == "" else "absent" if outcome.reason is None else "failed"] += 1
        if outcome.reason:
            reasons[medium.kind][reason_class(outcome.reason)] += 1
        slowest[medium.kind] = max(slowest[medium.kind], (outcome.seconds, medium.what))
    print("\n| format | rows | present | absent | failed | workers that died | over the time | slowest row, s |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |")
    for kind, found in counts.items():
        numbers = [sum(found[key] for key in ("present", "absent", "failed")), *(found[k] for k in _COLUMNS)]
        print(f"| {kind.upper()} | {' | '.join(map(str, numbers))} | {slowest[kind][0]:.2f} ({slowest[kind][1]}) |")
    for kind, found in reasons.items():
        print(f"\n{kind.upper()}, why failed:")
        for reason, count in found.most_common(12):
            print(f"  {count:6,}  {reason}")
    lost = sum(found["lost"] for found in counts.values())
    print(
        f"\n{len(media):,} rows, {lost} lost; limits a row: {row_seconds:g} s, {row_gib:g} GiB; most memory: a worker"
        f" {watch.worker_bytes / GIB:.2f} GiB, this process {watch.own_bytes / GIB:.2f} GiB;"
        f" {time.monotonic() - started:.0f} s in all"
    )
    too_much = watch.worker_bytes > (row_gib + 1) * GIB or watch.own_bytes > 2 * GIB
    raise SystemExit(1 if lost or too_much else 0)


_COLUMNS = ("present", "absent", "failed", "died", "too long")


def _told(outcome: Read) -> str:
    return {"": "present", None: "absent"}.get(outcome.reason) or f"failed: {str(outcome.reason)[:110]}"


if __name__ == "__main__":
    main()
