"""What each song and section is about, before a note is written: moods, and which modalities are missing.

Mood follows the circumplex of Russell (1980), "A circumplex model of affect": the sign of valence and of arousal
name one of four quadrants. Valence shows in the words and in the mode of the music, arousal in the sound and in
part in the notes, so no single modality gives the mood away. Missingness is drawn without looking at any of this.
"""

from dataclasses import dataclass

import numpy as np

MOODS = {(True, True): "happy", (False, True): "angry", (False, False): "sad", (True, False): "calm"}
# The shares of the data set this product was conceived for.
MISSING_SHARES = {"text": 0.07, "audio": 0.15, "midi": 0.57}
UNLABELLED_ENERGY_SHARE = 0.02

SECTION_FORM = ("verse", "verse", "chorus")
# A chosen, mild correlation: no modality is wholly blind to the axis that it does not carry.
AROUSED_IF_POSITIVE = 0.6
# How often a section keeps the sign of its song: songs are mostly of one mood, but not wholly.
SECTION_KEEPS_VALENCE = 0.85
SECTION_KEEPS_AROUSAL = 0.85
ENERGY_NOISE = 0.06


@dataclass(frozen=True)
class SectionPlan:
    """What a section is to be before a note of it is written."""

    kind: str
    positive: bool
    arousal: float
    """In [0, 1]; above 0.5 is the upper half of the circumplex."""

    @property
    def mood(self) -> str:
        """The label: one of four quadrants of valence and arousal."""
        return MOODS[self.positive, self.arousal > 0.5]


def plan_song(n_sections: int, rng: np.random.Generator) -> list[SectionPlan]:
    """Verses each have their own mood; every chorus of a song is the same section."""
    song_positive = bool(rng.random() < 0.5)
    song_aroused = song_positive == bool(rng.random() < AROUSED_IF_POSITIVE)
    chorus = _plan_section("chorus", song_positive, song_aroused, rng)
    kinds = [SECTION_FORM[index % len(SECTION_FORM)] for index in range(n_sections)]
    return [chorus if kind == "chorus" else _plan_section(kind, song_positive, song_aroused, rng) for kind in kinds]


def _plan_section(kind: str, song_positive: bool, song_aroused: bool, rng: np.random.Generator) -> SectionPlan:
    positive = song_positive == bool(rng.random() < SECTION_KEEPS_VALENCE)
    aroused = song_aroused == bool(rng.random() < SECTION_KEEPS_AROUSAL)
    distance = rng.uniform(0.08, 0.48)
    return SectionPlan(kind, positive, 0.5 + distance if aroused else 0.5 - distance)


def draw_energy(arousal: np.ndarray, rng: np.random.Generator) -> list[float | None]:
    """Arousal (N,) with noise, in [0, 1]; None for the exact share that nobody rated."""
    energy = np.clip(arousal + rng.normal(0.0, ENERGY_NOISE, size=len(arousal)), 0.0, 1.0)
    unlabelled = set(
        rng.choice(len(arousal), size=round(UNLABELLED_ENERGY_SHARE * len(arousal)), replace=False).tolist()
    )
    return [None if index in unlabelled else round(float(value), 3) for index, value in enumerate(energy)]


def draw_presence(n_segments: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Presence of each modality, bool (N,): exact shares are missing, and every segment keeps at least one modality."""
    present = {modality: np.ones(n_segments, dtype=bool) for modality in MISSING_SHARES}
    # Audio goes last, and only from segments that have something else, so that no count needs a correction afterwards.
    for modality in ("text", "midi", "audio"):
        has_another = np.any([mask for other, mask in present.items() if other != modality], axis=0)
        n_missing = round(MISSING_SHARES[modality] * n_segments)
        present[modality][rng.choice(np.flatnonzero(has_another), size=n_missing, replace=False)] = False
    return present
