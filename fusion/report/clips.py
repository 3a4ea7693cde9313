"""Short clips of segments' audio as MP3, which every browser plays, within a budget of bytes."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from dataclasses import dataclass, field

import soundfile

from featurize.audio import load_mono
from featurize.project import StoreRows
from featurize.segments import RawAudio, UnreadableInput

CLIP_SECONDS = 10.0
SAMPLE_RATE_HZ = 22_050  # of MPEG-2 layer III, which is made for few bits
COMPRESSION = 0.8  # of libsndfile, at a variable bit rate: about 27 kbit/s, 34 kB and 0.1 s of work for 10 s
BUDGET_BYTES = 6_000_000  # of base64 in the page


@dataclass
class Clips:
    """base64: by segment id. failed: why a segment has none, by id. full: whether more would not have fitted."""

    base64: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    full: bool = False


def make_clips(ids: list[str], audio: StoreRows, rows: Iterable[int], most: int) -> Clips:
    """The beginnings of up to `most` segments. ids: of the store, by row; rows: which to take, the first ones first."""
    clips, used = Clips(), 0
    for row in rows:
        if len(clips.base64) >= most:
            break
        try:
            raw = audio.raw(row)
            if not isinstance(raw, RawAudio):
                continue
            clip = base64.b64encode(mp3(raw)).decode("ascii")
        except UnreadableInput as error:
            clips.failed[ids[row]] = str(error)
            continue
        if used + len(clip) > BUDGET_BYTES:
            clips.full = True
            break
        used += len(clip)
        clips.base64[ids[row]] = clip
    return clips


def mp3(raw: RawAudio) -> bytes:
    """Mono, the first `CLIP_SECONDS` of the segment. Raises `UnreadableInput`."""
    samples = load_mono(raw, SAMPLE_RATE_HZ)[: int(CLIP_SECONDS * SAMPLE_RATE_HZ)]
    file = io.BytesIO()
    try:
        soundfile.write(
            file,
            samples.clip(-1, 1),
            SAMPLE_RATE_HZ,
            format="MP3",
            subtype="MPEG_LAYER_III",
            compression_level=COMPRESSION,
            bitrate_mode="VARIABLE",
        )
    except (soundfile.SoundFileError, ValueError) as error:
        raise UnreadableInput(f"this libsndfile ({soundfile.__libsndfile_version__}) writes no MP3") from error
    return file.getvalue()
