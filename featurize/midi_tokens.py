"""Turn the notes of a segment into tokens for a transformer, in one of two ways, both as `miditok` has them.

* `separate` (miditok's `MIDILike`): NOTE_ON, velocity, NOTE_OFF, TIME_SHIFT and program, one after the other, as in
  Oore et al. 2018. Time is counted in seconds, so the sequence holds the tempo without naming it.
* `compound` (miditok's `Octuple`): one token per note, with a column each for pitch, position in the bar, bar,
  velocity, duration, program, tempo and length of the bar, as in Zeng et al. 2021. Time is counted in bars and
  quarters.

Conventions
-----------
* `ids` are int32, (n,) or (n, 8), in order of time; 0 (`PAD_ID`) is padding in every column, and never in `ids`.
* Vocabularies and decoding are miditok's. The ids are those of its encoder, token for token, for the same notes on the
  grid, but written by numpy: ten seconds of pop take 0.2 to 0.4 ms instead of 4 to 10, a song 2 instead of 100 to 350.
* Program is 0 to 127, or drums; which drum kit is not kept. Drums have pitch tokens of their own.
* At most `max_events` tokens. What is left out stands at the end, and `n_cut` says how many notes begin there.
* Bars are counted from 0, the one in which the segment begins; a segment that begins within a bar has its first notes
  at the positions they have there. A time signature begins a bar wherever it stands. Bars longer than
  `MAX_BAR_EIGHTHS` count as several equal ones. Notes from bar `MAX_BARS` on are cut.
* miditok counts positions in beats of the time signature, so that an eighth would be 12 steps in 4/4 and 24 in 6/8.
  Every bar is one of so many eighths here, rounded up (7/16 is 4/8); so a step is 1/24 quarter in all of them.

What comes out of the tokens (`decode`), against what went in
-------------------------------------------------------------
* Every note but the `n_cut`, with its pitch and program; velocity to 2, half a bin.
* `separate`: onset and offset to half a step of 10 ms; notes shorter than a step last one. A NOTE_OFF ends the oldest
  sounding note of its pitch and program: where one sounds within another of its kind, the first to begin ends first.
  Drum hits have no end, and last a step. Notes that still sound at the cut end with the last token.
* `compound`: onset, as bar and position, to half a step. Duration to half a step up to 4 quarters; to 1 step up to 8,
  2 up to 16 and 6 up to 32 quarters, where it is capped; notes shorter than a step last one. Tempo at the onset to
  3 % from 16 to 256 bpm. A decoder must guess the bars without notes, and takes every bar for full: what it plays is in
  time as long as bars are full, hold whole eighths, and change their length only at notes.

Sources: S. Oore et al., "This time with feeling", 2018, arXiv:1808.03715 (the events); C.-Z. A. Huang et al., "Music
Transformer", 2018, arXiv:1809.04281 (10 ms, 32 velocities); M. Zeng et al., "MusicBERT", 2021, arXiv:2106.05630, on
OctupleMIDI (the columns, 256 bars, 49 tempos, long bars split); J. Gardner et al., "MT3", 2022, arXiv:2111.03017 (drum
hits without end).
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import miditok  # type: ignore[import-untyped]
import numpy as np
import symusic

from featurize.midi import EDGE_SECONDS, Score

Tokenization = Literal["separate", "compound"]

PAD_ID = 0
N_VELOCITIES = 32
ALL_PITCHES = (0, 127)
INSTRUMENTS = (*range(128), -1)  # programs, and drums at the end, where index -1 finds them

STEPS_PER_SECOND = 100

STEPS_PER_EIGHTH = 12
STEPS_PER_QUARTER = 2 * STEPS_PER_EIGHTH  # 32nds and triplets of 16ths both fall on it
DURATION_STEPS_PER_EIGHTH = {(0, 8): 12, (8, 16): 6, (16, 32): 3, (32, 64): 1}  # by eighths: coarser where longer
DURATION_STEPS = np.array(  # all that there are
    [
        step
        for (low, high), per_eighth in DURATION_STEPS_PER_EIGHTH.items()
        for step in range(low * STEPS_PER_EIGHTH, high * STEPS_PER_EIGHTH, STEPS_PER_EIGHTH // per_eighth)
        if step
    ]
    + [64 * STEPS_PER_EIGHTH]
)
MAX_BAR_EIGHTHS = 16
MAX_BARS = 256
N_TEMPOS = 49
TEMPO_RANGE_BPM = (16, 256)
COLUMNS = ("Pitch", "Position", "Bar", "Velocity", "Duration", "Program", "Tempo", "TimeSig")  # in miditok's order
SLIVER_OF_A_BAR = 1e-6  # a signature this little behind a bar line, in bars, stands on it: seconds carry rounding

LEAST_EVENTS = {"separate": 3, "compound": 1}  # one note: program, NOTE_ON and velocity


@dataclass(frozen=True, eq=False)
class Tokens:
    """ids: int32 (n,) or (n, columns). n_cut: notes of the segment that do not begin in `ids`.

    bar, position: int32 (n,), only of compound tokens: bar from the segment's first, steps of 1/24 quarter in the bar.
    """

    ids: np.ndarray
    n_cut: int
    bar: np.ndarray | None = None
    position: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class MidiTokenizer:
    """Notes to tokens and back. Holds its two settings and nothing else, so that it travels light between processes.

    Raises `ValueError` on a tokenization it does not know, and on fewer `max_events` than one note needs.
    """

    tokenization: Tokenization
    max_events: int = 1024

    def __post_init__(self) -> None:
        if self.tokenization not in LEAST_EVENTS:
            raise ValueError(f"tokenization is {self.tokenization!r}; expected 'separate' or 'compound'")
        least = LEAST_EVENTS[self.tokenization]
        if self.max_events < least:
            raise ValueError(f"max_events is {self.max_events}; {self.tokenization} tokens need at least {least}")

    @property
    def columns(self) -> tuple[str, ...]:
        """What the columns of compound tokens hold, in order; ("Event",) for separate ones."""
        return COLUMNS if self.tokenization == "compound" else ("Event",)

    @property
    def vocabulary_sizes(self) -> tuple[int, ...]:
        """Of each column, padding included: ids are below."""
        sizes = _miditok(self.tokenization).len
        return tuple(sizes) if isinstance(sizes, list) else (sizes,)

    @property
    def settings(self) -> dict[str, Any]:
        """All that decides the ids, for an encoder's record; miditok's version belongs in its `libraries`."""
        shared = {"tokenization": self.tokenization, "max_events": self.max_events, "n_velocities": N_VELOCITIES}
        if self.tokenization == "separate":
            return {**shared, "steps_per_second": STEPS_PER_SECOND}
        durations = {f"{low}-{high} eighths": steps for (low, high), steps in DURATION_STEPS_PER_EIGHTH.items()}
        return {
            **shared,
            "steps_per_quarter": STEPS_PER_QUARTER,
            "duration_steps_per_eighth": durations,
            "max_bar_eighths": MAX_BAR_EIGHTHS,
            "max_bars": MAX_BARS,
            "n_tempos": N_TEMPOS,
            "tempo_range_bpm": list(TEMPO_RANGE_BPM),
        }

    def tokens(self, score: Score) -> Tokens:
        """score: the notes of a segment, in seconds from its start. No notes give no tokens."""
        make = _separate_tokens if self.tokenization == "separate" else _compound_tokens
        return make(score, self.max_events)

    def decode(self, ids: np.ndarray) -> Any:
        """What `ids`, int (T,) or (T, C), without padding, say, as a `symusic.Score` in ticks; the module's text says
        how exactly.

        A tick is a step: 10 ms of separate tokens, which then have 60 quarters a minute, 1/24 quarter of compound ones.
        """
        tokenizer, numbers = _miditok(self.tokenization), np.asarray(ids).tolist()
        if not numbers:
            return symusic.Score(tokenizer.time_division)
        if self.tokenization == "separate":
            ends = _missing_ends([tokenizer[number] for number in numbers])
            music = tokenizer.decode(numbers + [tokenizer[word] for word in ends])
            music.tempos = [symusic.Tempo(0, 60)]  # miditok's quarter is a second here
            return music
        music = tokenizer.decode(numbers)
        tempo = COLUMNS.index("Tempo")
        first_bpm = float(tokenizer[tempo, numbers[0][tempo]].removeprefix("Tempo_"))
        music.tempos = [symusic.Tempo(0, first_bpm), *music.tempos[1:]]  # instead of 120 until the first note
        return music


@functools.cache
def _miditok(tokenization: Tokenization) -> Any:
    shared = {
        "pitch_range": ALL_PITCHES,
        "drums_pitch_range": ALL_PITCHES,
        "use_pitchdrum_tokens": True,
        "num_velocities": N_VELOCITIES,
        "special_tokens": ["PAD"],
        "use_programs": True,
        "one_token_stream_for_programs": True,
    }
    if tokenization == "separate":
        config = miditok.TokenizerConfig(
            **shared,
            beat_res={(0, 1): STEPS_PER_SECOND},  # miditok is told that a beat is a second
            program_changes=True,  # a program stands before the first of its notes, not before each
            use_note_duration_programs=range(128),  # drum hits have no NOTE_OFF
            default_note_duration=1 / STEPS_PER_SECOND,  # what a drum hit is decoded to
            use_time_signatures=False,
            time_signature_range={4: []},
        )
        return miditok.MIDILike(config)
    config = miditok.TokenizerConfig(
        **shared,
        beat_res=DURATION_STEPS_PER_EIGHTH,
        use_time_signatures=True,
        time_signature_range={4: [], 8: list(range(1, MAX_BAR_EIGHTHS + 1))},  # miditok wants to know of quarters
        use_tempos=True,
        num_tempos=N_TEMPOS,
        tempo_range=TEMPO_RANGE_BPM,
        log_tempos=True,
        max_bar_embedding=MAX_BARS,
    )
    return miditok.Octuple(config)


def _ids(vocabulary: Mapping[str, int], kind: str, values: Iterable[Any]) -> np.ndarray:
    return np.array([vocabulary[f"{kind}_{value}"] for value in values], np.int32)


def _velocity_bins(bins: np.ndarray) -> np.ndarray:
    """The nearest of `bins` to each velocity from 0 to 127; the upper of two."""
    nearest: np.ndarray = bins[np.searchsorted((bins[1:] + bins[:-1]) / 2, np.arange(128), side="right")]
    return nearest


@functools.cache
def _separate_ids() -> dict[str, np.ndarray]:
    """on: of pitches and, behind them, drums. off: of pitches. The others by velocity, instrument, steps less one."""
    tokenizer = _miditok("separate")
    words = tokenizer.vocab
    durations = [".".join(map(str, duration)) for duration in tokenizer.durations]
    return {
        "on": np.concatenate([_ids(words, kind, range(128)) for kind in ("NoteOn", "DrumOn")]),
        "off": _ids(words, "NoteOff", range(128)),
        "velocity": _ids(words, "Velocity", _velocity_bins(tokenizer.velocities)),
        "program": _ids(words, "Program", INSTRUMENTS),
        "shift": _ids(words, "TimeShift", durations),
    }


def _separate_tokens(score: Score, max_events: int) -> Tokens:
    if len(score) == 0:
        return Tokens(ids=np.empty(0, np.int32), n_cut=0)
    onset = np.rint(score.onset_seconds * STEPS_PER_SECOND).astype(np.int64)
    offset = np.maximum(np.rint(score.offset_seconds * STEPS_PER_SECOND).astype(np.int64), onset + 1)
    order = np.lexsort((score.velocity, offset, score.pitch, onset))
    score, onset, offset = score.select(order), onset[order], offset[order]
    instrument = _instruments(score)

    # One entry per event: all onsets, and the offsets of all but drums. At one time, instrument by instrument, and in
    # each what began first comes first: an end before the next onset of the same pitch.
    ending = np.flatnonzero(~score.is_drum)
    time, note = np.concatenate([onset, offset[ending]]), np.concatenate([np.arange(len(score)), ending])
    is_onset = np.arange(len(time)) < len(score)
    order = np.lexsort((note, instrument[note], time))
    time, note, is_onset = time[order], note[order], is_onset[order]

    # An event is time shifts, perhaps a program, NOTE_ON or NOTE_OFF (at `place`), and after NOTE_ON a velocity.
    waited = np.diff(time, prepend=0)
    turn = np.diff(instrument[note], prepend=-2) != 0
    end = np.cumsum(-(-waited // STEPS_PER_SECOND) + turn + 1 + is_onset)
    place = end - 1 - is_onset
    token = _separate_ids()
    ids = np.full(end[-1], token["shift"][-1])  # where nothing else is written, a whole second passes
    on, off, rest = place[is_onset], place[~is_onset], waited > 0
    ids[(place - 1 - turn)[rest]] = token["shift"][(waited[rest] - 1) % STEPS_PER_SECOND]
    ids[place[turn] - 1] = token["program"][instrument[note[turn]]]
    ids[on] = token["on"][(score.pitch + 128 * score.is_drum)[note[is_onset]]]
    ids[on + 1] = token["velocity"][score.velocity[note[is_onset]]]
    ids[off] = token["off"][score.pitch[note[~is_onset]]]

    is_whole = np.ones(len(ids), bool)  # a program or NOTE_ON at the very end would announce what was cut
    is_whole[on] = is_whole[place[turn] - 1] = False
    n_kept = np.flatnonzero(is_whole[:max_events])[-1] + 1
    return Tokens(ids=ids[:n_kept], n_cut=int(np.count_nonzero(on >= n_kept)))


def _missing_ends(words: list[str]) -> list[str]:
    """The NOTE_OFFs, with their programs, of the notes that still sound after `words`."""
    sounding: Counter[tuple[str, str]] = Counter()
    program = ""
    for word in words:
        kind, _, value = word.partition("_")
        if kind == "Program":
            program = word
        elif kind == "NoteOn":
            sounding[program, f"NoteOff_{value}"] += 1
        elif kind == "NoteOff":
            sounding[program, word] -= 1
    return [word for (program, end), n in sounding.items() for word in [program, *[end] * n] if n]


@functools.cache
def _compound_ids() -> dict[str, np.ndarray]:
    """By column; pitch with drums behind, velocity, instrument, the others from their least value on."""
    tokenizer = _miditok("compound")
    words = dict(zip(COLUMNS, tokenizer.vocab, strict=True))
    pitches = [_ids(words["Pitch"], kind, range(128)) for kind in ("Pitch", "PitchDrum")]
    durations = [".".join(map(str, duration)) for duration in tokenizer.durations]
    return {
        "Pitch": np.concatenate(pitches),
        "Position": _ids(words["Position"], "Position", range(STEPS_PER_EIGHTH * MAX_BAR_EIGHTHS)),
        "Bar": _ids(words["Bar"], "Bar", range(MAX_BARS)),
        "Velocity": _ids(words["Velocity"], "Velocity", _velocity_bins(tokenizer.velocities)),
        "Duration": _ids(words["Duration"], "Duration", durations),
        "Program": _ids(words["Program"], "Program", INSTRUMENTS),
        "Tempo": _ids(words["Tempo"], "Tempo", tokenizer.tempos),
        "TimeSig": _ids(words["TimeSig"], "TimeSig", [f"{eighths}/8" for eighths in range(1, MAX_BAR_EIGHTHS + 1)]),
    }


def _compound_tokens(score: Score, max_events: int) -> Tokens:
    bars = _Bars.of(score)
    onset = score.quarters_at(score.onset_seconds)
    steps = (score.quarters_at(score.offset_seconds) - onset) * STEPS_PER_QUARTER
    duration = np.searchsorted((DURATION_STEPS[1:] + DURATION_STEPS[:-1]) / 2, steps)
    tempo = np.searchsorted(score.tempo_seconds, score.onset_seconds + EDGE_SECONDS, side="right") - 1
    bar, position = bars.place(onset)
    eighths = bars.eighths(bar)
    bar -= bars.place(score.quarters_at(np.zeros(1)))[0]

    values = {
        "Pitch": score.pitch + 128 * score.is_drum,
        "Position": position,
        "Bar": bar,
        "Velocity": score.velocity,
        "Duration": duration,
        "Program": _instruments(score),
        "Tempo": _nearest_tempos(score.tempo_bpm)[tempo],
        "TimeSig": eighths - 1,
    }
    kept = np.lexsort((score.velocity, duration, score.pitch, values["Program"], position, bar))
    kept = kept[bar[kept] < MAX_BARS][:max_events]
    ids = np.stack([_compound_ids()[column][values[column][kept]] for column in COLUMNS], axis=1)
    return Tokens(
        ids=ids,
        n_cut=len(score) - len(kept),
        bar=bar[kept].astype(np.int32),
        position=position[kept].astype(np.int32),
    )


def _nearest_tempos(bpm: np.ndarray) -> np.ndarray:
    """Index among the tempos there are, nearest in the length of a quarter, as MIDI counts: int64 (k,)."""
    lengths = 1 / _miditok("compound").tempos[::-1]
    nearest: np.ndarray = np.searchsorted((lengths[1:] + lengths[:-1]) / 2, 1 / bpm)
    return N_TEMPOS - 1 - nearest


@dataclass(frozen=True, eq=False)
class _Bars:
    """Where the bars stand, one entry per time signature. Bars are counted from the first signature's first.

    start_quarters, bar_quarters: float64 (j,), where the signature begins, and the length of its bars.
    first_bar: int64 (j,), the number of its first bar.
    """

    start_quarters: np.ndarray
    bar_quarters: np.ndarray
    first_bar: np.ndarray

    @classmethod
    def of(cls, score: Score) -> _Bars:
        start_quarters = score.quarters_at(score.time_signature_seconds)
        numerator, denominator = score.time_signatures.T.astype(np.float64)
        bar_quarters = 4 * numerator / denominator
        bar_quarters /= np.ceil(2 * bar_quarters / MAX_BAR_EIGHTHS)
        n_bars = np.ceil(np.diff(start_quarters) / bar_quarters[:-1] - SLIVER_OF_A_BAR)
        first_bar = np.concatenate([[0], np.cumsum(n_bars)]).astype(np.int64)
        return cls(start_quarters, bar_quarters, first_bar)

    def place(self, quarters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Bar and position in it, int64 (n,), of moments (n,) in quarters; half a step before a bar line is on it."""
        upper = quarters + 0.5 / STEPS_PER_QUARTER
        signature = np.maximum(np.searchsorted(self.start_quarters, upper, side="right") - 1, 0)
        start, length = self.start_quarters[signature], self.bar_quarters[signature]
        bar = np.floor((upper - start) / length)
        position = np.rint((quarters - start - bar * length) * STEPS_PER_QUARTER)
        bar = bar.astype(np.int64) + self.first_bar[signature]
        return bar, np.clip(position, 0, STEPS_PER_EIGHTH * self.eighths(bar) - 1).astype(np.int64)

    def eighths(self, bar: np.ndarray) -> np.ndarray:
        """Length of each bar in eighths, rounded up: int64, 1 to `MAX_BAR_EIGHTHS`."""
        signature = np.searchsorted(self.first_bar, bar, side="right") - 1
        lengths: np.ndarray = np.ceil(2 * self.bar_quarters[signature] - SLIVER_OF_A_BAR).astype(np.int64)
        return lengths


def _instruments(score: Score) -> np.ndarray:
    """Program, or -1 for drums, as miditok counts: int64 (n,)."""
    return np.where(score.is_drum, -1, score.program).astype(np.int64)
