"""`music_transformer`: it knows where in the bar a note stands, and not which bar that is."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from featurize.encoders.event import EventBasedEncoder
from featurize.encoders.music_transformer import N_STEP_KINDS, STEP_EDGES, MusicTransformer, step_kinds
from featurize.encoders.transformer import Layer, note_windows
from featurize.midi import Score, cut
from featurize.midi_tokens import MidiTokenizer
from tests.test_event import (
    LEARNING,
    SMALL,
    TransformerContract,
    accuracy_on_fresh,
    any_notes,
    close,
    encode,
    later,
    play,
)


class TestMusicTransformerContract(TransformerContract):
    kind, tokenization = MusicTransformer, "compound"


def small(**options) -> MusicTransformer:
    torch.manual_seed(0)
    return MusicTransformer(**SMALL, **options).eval()


def accents_on_or_off_the_bar(n: int, rng: np.random.Generator) -> tuple[list[Score], np.ndarray]:
    """Every fourth beat is louder, from anywhere on, at any tempo; bars of four begin with the loud one (1), or with
    another (0). The notes know nothing of it: they are drawn first."""
    scores = []
    on_the_bar = rng.integers(0, 2, n)
    for on in on_the_bar:
        beats = np.arange(rng.integers(9, 17)) + rng.integers(0, 4)
        bpm = rng.uniform(80, 150)
        velocity = rng.integers(60, 90, len(beats)) + 30 * (beats % 4 == 0)
        pitch = rng.integers(50, 80, len(beats))
        first_bar = -beats[0] - (0 if on else rng.integers(1, 4))
        scores.append(
            play(
                *((beats - beats[0]) * 60 / bpm, pitch),
                velocity=velocity,
                bpm=bpm,
                meters=((first_bar * 60 / bpm, 4, 4),),
            )
        )
    return scores, on_the_bar


def test_it_learns_what_only_bars_tell() -> None:
    """And `event`, which hears the same notes and no bar lines, does not, with the same training."""
    found = {}
    for kind in (MusicTransformer, EventBasedEncoder):
        torch.manual_seed(0)
        found[kind.name] = accuracy_on_fresh(kind(**LEARNING), accents_on_or_off_the_bar, n_steps=150)
    print(found)
    assert found["music_transformer"] >= 0.9 and found["event"] <= 0.65


def test_the_same_notes_in_other_bars_are_other_music() -> None:
    bars = ((0.0, 4, 4), (-0.5, 4, 4), (0.0, 3, 4), (-1.3, 7, 8))
    vectors = encode(small(), [any_notes(50, meters=(bar,)) for bar in bars]).pooled
    assert torch.cdist(vectors, vectors)[~torch.eye(4, dtype=bool)].min() > 0.01 * vectors.norm(dim=1).max()


@pytest.mark.parametrize("meter", [(4, 4), (7, 8), (3, 4)])
def test_the_number_of_the_bar_makes_no_difference(meter: tuple[int, int]) -> None:
    """Of a whole song, and of a segment that begins within a bar."""
    score = any_notes(100, meters=((0.0, *meter),))
    bar_seconds = 0.5 * 4 * meter[0] / meter[1]
    starts = [n_bars * bar_seconds for n_bars in (0, 1, 300)]
    songs = [later(score, start) for start in starts]
    segments = [cut(song, start + 0.7, start + 9.0) for song, start in zip(songs, starts, strict=True)]
    for found in (songs, segments):
        first, *others = encode(small(), found).pooled
        for other in others:
            close(other, first)


def test_bars_are_told_apart_up_to_a_distance() -> None:
    def with_the_second_note_in_bar(n: int) -> Score:
        return play([0.5, 0.5 + 2.0 * n], [60, 67])

    near, at_most, beyond = encode(
        small(max_bar_distance=4), [with_the_second_note_in_bar(n) for n in (3, 4, 9)]
    ).pooled
    close(at_most, beyond)
    assert not torch.allclose(near, at_most, atol=1e-4)


def test_notes_that_sound_together_have_no_order() -> None:
    encoder = small()
    item = encoder.prepare_score(play(np.zeros(6), [60, 64, 67, 72, 76, 79], velocity=[50, 60, 70, 80, 90, 100]))
    with torch.no_grad():
        here, turned = (
            encoder(encoder.collate([{**item, "ids": item["ids"][order]}])).pooled
            for order in (np.arange(6), [5, 3, 1, 0, 2, 4])
        )
    close(turned, here)


def test_long_music_is_cut_at_bar_lines() -> None:
    """Of 100 bars with 1 to 12 notes each, no bar is in two windows; a bar of too many notes has to be."""
    counts = np.random.default_rng(0).integers(1, 13, 100)
    onset = np.concatenate([bar + np.arange(n) / 12 for bar, n in enumerate(counts)]) * 2.0
    windows = list(note_windows(play(onset, 60), MidiTokenizer("compound", 40)))
    bars, n_bars = [window.bar for window in windows], 0
    assert len(windows) > len(onset) / 40 and all(len(bar) <= 40 and bar[0] == 0 for bar in bars)
    for bar in bars:
        found = np.bincount(bar)
        np.testing.assert_array_equal(found, counts[n_bars : n_bars + len(found)])
        n_bars += len(found)
    assert n_bars == 100
    crowded = list(note_windows(play(np.linspace(0, 1.9, 100), 60), MidiTokenizer("compound", 40)))
    assert [len(window) for window in crowded] == [25, 25, 25, 25]
    assert [int(window.position[0]) for window in crowded] == sorted({int(w.position[0]) for w in crowded})


@pytest.mark.parametrize("bars", [[0, 255, 256, 700], [0, *range(1_000, 1_060)], range(0, 60_000, 300)])
def test_no_bar_is_too_far(bars: list[int]) -> None:
    """The tokenizer counts to 256; whatever comes later is read in a window of its own."""
    windows = list(note_windows(play(np.array(bars) * 2.0, 60), MidiTokenizer("compound", 50)))
    assert sum(map(len, windows)) == len(bars) and all(window.n_cut == 0 for window in windows)
    assert len(windows) > 1 and all(0 < len(window) <= 50 for window in windows)


def test_distances_in_position_are_of_octaves() -> None:
    assert STEP_EDGES == (1, 3, 6, 12, 24, 48, 96) and N_STEP_KINDS == 15
    position = torch.tensor([[0, 1, 2, 3, 5, 6, 11, 12, 23, 24, 47, 48, 95, 96, 191]])
    kinds = step_kinds(position)[0]
    assert kinds[0].tolist() == [7, 8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 13, 13, 14, 14]
    assert torch.equal(kinds + kinds.T, torch.full((15, 15), 14))


def test_attention_meets_the_keys_of_both_relations() -> None:
    """Against a plain walk over heads and pairs: Shaw et al. 2018, equation 4, with the sum of two keys."""
    torch.manual_seed(0)
    n_heads, width, kinds_of = 2, 8, (5, 3)
    layer = Layer(width, n_heads, 0.0, kinds_of)
    states = torch.randn(1, 6, width)
    first, second = torch.randint(5, (6, 6)), torch.randint(3, (6, 6))
    found = layer._attend(states, torch.ones(1, 1, 1, 6, dtype=bool), (first * 3 + second)[None])
    q, k, v = (part.unflatten(1, (n_heads, 4)) for part in layer.to_queries_keys_values(states[0]).chunk(3, dim=1))
    of_first, of_second = layer.relation_keys
    heads = torch.zeros(6, n_heads, 4)
    for i in range(6):
        for head in range(n_heads):
            scores = [q[i, head] @ (k[j, head] + of_first[first[i, j]] + of_second[second[i, j]]) / 2 for j in range(6)]
            heads[i, head] = torch.stack(scores).softmax(dim=0) @ v[:, head]
    torch.testing.assert_close(found[0], layer.to_states(heads.flatten(1)), rtol=1e-5, atol=1e-5)


def test_a_note_looks_from_itself_to_the_other() -> None:
    """Bars and positions of what is looked at less its own: a bar ahead is another kind than a bar behind."""
    encoder = small(max_bar_distance=1)
    seen = []
    encoder.layers[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[2]))
    encode(encoder, [play([0.5, 2.5, 7.0], 60)])  # beat 2 of bars 0 and 1, beat 3 of bar 3
    bar_kinds, of_steps = seen[0][0] // N_STEP_KINDS, seen[0][0] % N_STEP_KINDS
    assert bar_kinds.tolist() == [[1, 2, 2], [0, 1, 2], [0, 0, 1]]
    assert of_steps.tolist() == [[7, 7, 12], [7, 7, 12], [2, 2, 7]]


def test_a_wrong_distance_is_named() -> None:
    with pytest.raises(ValueError, match="max_bar_distance is 0; expected at least 1"):
        MusicTransformer(max_bar_distance=0)
    assert MusicTransformer(max_bar_distance=3).settings["max_bar_distance"] == 3
    assert "Bar" not in MusicTransformer().settings["columns"] and "Position" in MusicTransformer().settings["columns"]
