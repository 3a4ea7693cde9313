"""The mel CNN: an item's vector whatever it is padded with, statistics of real steps only, and that it learns."""

from __future__ import annotations

import inspect
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from featurize.encoders.base import Encoded
from featurize.encoders.mel_cnn import MaskedBatchNorm, MelCNNEncoder
from featurize.segments import RawAudio
from tests.encoders_contract import EncoderContract
from tests.test_encoders import demo_raws

RATE_HZ = 22050
SMALL = {"hidden_dim": 8, "n_fft": 256, "hop_length": 128, "n_mels": 20, "channels": (4, 6, 8)}


def noise(n_samples: int, seed: int = 0, amplitude: float = 0.1) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, amplitude, n_samples).astype(np.float32)


def as_if_trained(encoder: MelCNNEncoder) -> MelCNNEncoder:
    """Statistics and biases as training leaves them: with those of a new network, wrong masks could go unnoticed."""
    with torch.no_grad():
        for layer in encoder.modules():
            if isinstance(layer, MaskedBatchNorm):
                layer.bias.normal_(0.5)
        encoder.train()(encoder.collate([encoder.prepare_waveform(noise(n, seed=n)) for n in (9_000, 20_000, 30_000)]))
    return encoder.eval()


@pytest.fixture(scope="module")
def small() -> MelCNNEncoder:
    torch.manual_seed(0)
    encoder = as_if_trained(MelCNNEncoder(**SMALL))
    encoder.with_frames = True
    return encoder


@torch.inference_mode()
def encode(encoder: MelCNNEncoder, waveforms: list[np.ndarray]) -> Encoded:
    return encoder(encoder.collate([encoder.prepare_waveform(waveform) for waveform in waveforms]))


class TestMelCNNContract(EncoderContract):
    @pytest.fixture
    def encoder(self):
        torch.manual_seed(0)
        return as_if_trained(MelCNNEncoder())

    @pytest.fixture
    def new_encoder(self):
        return MelCNNEncoder

    @pytest.fixture
    def raws(self, demo_data):
        """Of different lengths: 0.2 to 1.6 s."""
        raws = demo_raws(demo_data, "audio")
        return [
            replace(raw, end_seconds=(raw.start_seconds or 0) + 0.2 * count) for count, raw in enumerate(raws, start=1)
        ]


@settings(max_examples=60, deadline=None)
@given(n_samples=st.integers(1, 6_000), others=st.lists(st.integers(1, 9_000), min_size=1, max_size=3))
def test_the_batch_leaves_no_trace(small: MelCNNEncoder, n_samples: int, others: list[int]) -> None:
    waveform = noise(n_samples)
    alone = encode(small, [waveform])
    together = encode(small, [waveform, *(noise(n, seed=1, amplitude=1.0) for n in others)])
    torch.testing.assert_close(together.pooled[:1], alone.pooled, rtol=1e-5, atol=1e-5 * alone.pooled.abs().max())
    n_frames = alone.frames.shape[1]
    assert alone.frame_mask.all() and together.frame_mask[0].sum() == n_frames
    assert not together.frames[0, n_frames:].any()
    torch.testing.assert_close(
        together.frames[:1, :n_frames], alone.frames, rtol=1e-5, atol=1e-5 * alone.frames.abs().max()
    )


def test_what_lies_behind_the_end_is_never_heard(small: MelCNNEncoder) -> None:
    items = [small.prepare_waveform(noise(n, seed=n)) for n in (256, 2_000, 5_000)]
    batch = small.collate(items)
    with torch.inference_mode():
        zeros = small(batch)
        for row, item in zip(batch["samples"], items, strict=True):
            row[len(item) :] = torch.randn(len(row) - len(item))
        noisy = small(batch)
    assert torch.equal(zeros.pooled, noisy.pooled) and torch.equal(zeros.frames, noisy.frames)


def test_frames_halve_with_every_layer(small: MelCNNEncoder) -> None:
    lengths = [1, 256, 256 + 128 * 7, 256 + 128 * 8, 256 + 128 * 31]
    encoded = encode(small, [noise(n) for n in lengths])
    assert encoded.frame_mask.sum(dim=1).tolist() == [1, 1, 1, 2, 4]  # of 1, 1, 8, 9 and 32 steps; three layers
    assert encoded.frames.shape == (5, 4, small.width) and encoded.frames.dtype == torch.float32
    assert encode(MelCNNEncoder(**SMALL).eval(), [noise(300)]).frames is None


def test_the_vector_follows_from_the_frames(small: MelCNNEncoder) -> None:
    encoded = encode(small, [noise(n, seed=n) for n in (3_000, 9_000)])
    for pooled, frames, mask in zip(encoded.pooled, encoded.frames, encoded.frame_mask, strict=True):
        real = frames[mask]
        expected = small.to_vector(torch.cat([real.mean(dim=0), real.max(dim=0).values]))
        torch.testing.assert_close(pooled, expected)


def test_statistics_are_of_real_steps_only() -> None:
    """Like torch's own on the real steps of all items end to end: output, gradients, and what it remembers."""
    torch.manual_seed(0)
    ours, theirs = MaskedBatchNorm(3), nn.BatchNorm2d(3, momentum=None)  # remembers the plain mean over all batches
    for norm in (ours, theirs):
        nn.init.constant_(norm.weight, 1.5)
        nn.init.constant_(norm.bias, -0.5)
    n_steps = torch.tensor([4, 9, 1])
    image = 5 + 3 * torch.randn(3, 3, 9, 6)
    padded, packed = image.clone().requires_grad_(), image.clone().requires_grad_()
    aims = [torch.randn(3, n, 6) for n in n_steps]
    for _ in range(3):
        out = ours(padded, n_steps)
        expected = theirs(torch.cat([item[:, :n] for item, n in zip(packed, n_steps, strict=True)], dim=1)[None])[0]
        for row, item, n in zip(out, expected.split(n_steps.tolist(), dim=1), n_steps, strict=True):
            torch.testing.assert_close(row[:, :n], item, rtol=1e-5, atol=1e-5)
            assert not row[:, n:].any()
    sum(((row[:, :n] - aim) ** 3).sum() for row, n, aim in zip(out, n_steps, aims, strict=True)).backward()
    ((expected - torch.cat(aims, dim=1)) ** 3).sum().backward()
    torch.testing.assert_close(padded.grad, packed.grad, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(ours.bias.grad, theirs.bias.grad, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(ours.running_mean, theirs.running_mean)
    n_values = int(n_steps.sum()) * 6
    torch.testing.assert_close(ours.running_variance, theirs.running_var * (n_values - 1) / n_values)


def test_old_batches_fade() -> None:
    norm = MaskedBatchNorm(1)
    for mean, n_batches in ((100.0, 50), (3.0, 60)):
        for _ in range(n_batches):
            norm(torch.full((1, 1, 2, 2), mean), torch.tensor([2]))
    assert norm.running_mean.item() == pytest.approx(3.0 + 97 * 0.9**60, abs=1e-3)


def test_evaluation_agrees_with_training_from_the_first_batch_on() -> None:
    torch.manual_seed(0)
    encoder = MelCNNEncoder(**SMALL, dropout=0.0)
    batch = encoder.collate([noise(n, seed=n) for n in (3_000, 9_000)])
    with torch.no_grad():
        torch.testing.assert_close(encoder.train()(batch).pooled, encoder.eval()(batch).pooled, rtol=1e-4, atol=1e-4)


def test_padding_changes_nothing_in_training_either() -> None:
    """A batch that was padded further has the same statistics, so the same vectors and gradients."""
    torch.manual_seed(0)
    encoder = MelCNNEncoder(**SMALL, dropout=0.0).train()
    batch = encoder.collate([noise(n, seed=n) for n in (3_000, 9_000)])
    further = {**batch, "samples": nn.functional.pad(batch["samples"], (0, 5_000))}
    found = []
    for given_batch in (batch, further):
        encoder.zero_grad()
        pooled = encoder(given_batch).pooled
        pooled.square().sum().backward()
        found.append([pooled.detach(), *(weight.grad.clone() for weight in encoder.parameters())])
    for tight, loose in zip(*found, strict=True):
        torch.testing.assert_close(loose, tight, rtol=1e-4, atol=1e-4 * float(tight.abs().max()) + 1e-7)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    "waveform",
    [
        np.zeros(1),
        np.ones(1),
        np.zeros(50_000),
        np.ones(50_000),
        noise(1023),
        noise(1025),
        2.0**31 * np.sign(noise(9_000)),
        1e-30 * noise(9_000),
    ],
    ids=["one zero", "one sample", "silence", "dc", "under a frame", "one frame", "huge", "tiny"],
)
def test_everything_is_finite(waveform: np.ndarray, training: bool) -> None:
    torch.manual_seed(0)
    encoder = MelCNNEncoder(hidden_dim=8, channels=(4, 6, 8, 8)).train(training)
    encoder.with_frames = True
    encoded = encoder(encoder.collate([encoder.prepare_waveform(waveform.astype(np.float32))]))
    encoded.pooled.sum().backward()
    assert encoded.pooled.isfinite().all() and encoded.frames.isfinite().all()
    assert all(weight.grad.isfinite().all() for weight in encoder.parameters())
    assert all(value.isfinite().all() for value in encoder.buffers())
    assert encoder.eval()(encoder.collate([noise(9_000)])).pooled.isfinite().all()


def test_one_sample_is_not_silence(small: MelCNNEncoder) -> None:
    """The window's first weight is 0: at the start of a frame, one sample would not be heard."""
    one, none = encode(small, [np.ones(1, np.float32), np.zeros(1, np.float32)]).pooled
    assert (one - none).abs().max() > 1e-3


def test_level_is_kept(small: MelCNNEncoder) -> None:
    loud, quiet = encode(small, [noise(9_000, amplitude=0.2), noise(9_000, amplitude=0.02)]).pooled
    assert (loud - quiet).norm() > 0.05 * loud.norm()


def test_bfloat16_is_near_and_comes_back_as_float32(small: MelCNNEncoder) -> None:
    waveforms = [noise(n, seed=n) for n in (3_000, 9_000)]
    plain = encode(small, waveforms)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = encode(small, waveforms)
    assert rounded.pooled.dtype == rounded.frames.dtype == torch.float32
    assert not torch.equal(rounded.pooled, plain.pooled)
    torch.testing.assert_close(rounded.pooled, plain.pooled, rtol=0, atol=0.03 * float(plain.pooled.abs().max()))


def chirps(n: int, rng: np.random.Generator) -> tuple[list[np.ndarray], torch.Tensor]:
    """n sounds of 0.7 to 1 s that glide up (1) or down (0) between the same notes, at any level, under noise."""
    rising = rng.integers(0, 2, n)
    sounds = []
    for up in rising:
        low, n_samples = rng.uniform(300, 1200), rng.integers(int(0.7 * RATE_HZ), RATE_HZ)
        glide = np.geomspace(low, low * rng.uniform(2, 4), n_samples)[:: 1 if up else -1]
        tone = np.sin(2 * np.pi * np.cumsum(glide) / RATE_HZ + rng.uniform(0, 6))
        sounds.append((10 ** rng.uniform(-2, 0) * (tone + rng.normal(0, 0.1, n_samples))).astype(np.float32))
    return sounds, torch.from_numpy(rising).float()


def test_it_learns() -> None:
    """Up or down has the same mean spectrum: only the order in time tells, so the convolutions must have learned."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    encoder = MelCNNEncoder(hidden_dim=32, channels=(16, 32, 32)).train()
    head = nn.Linear(encoder.width, 1)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *head.parameters()], lr=2e-3)
    for _ in range(40):
        sounds, rising = chirps(16, rng)
        logits = head(encoder(encoder.collate(sounds)).pooled)[:, 0]
        optimizer.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(logits, rising).backward()
        optimizer.step()
    sounds, rising = chirps(100, np.random.default_rng(1))
    with torch.inference_mode():
        found = head(encoder.eval()(encoder.collate(sounds)).pooled)[:, 0] > 0
    assert (found == (rising > 0)).float().mean() >= 0.95


def test_it_prepares_without_weights() -> None:
    encoder = MelCNNEncoder(duration_seconds=0.5)
    light = pickle.dumps(encoder.without_weights())
    assert len(light) < 2_000 < len(pickle.dumps(encoder))
    raw = RawAudio(samples=noise(3 * RATE_HZ).tobytes(), sample_rate_hz=RATE_HZ, start_seconds=1.0)
    item = pickle.loads(light).prepare(raw)
    np.testing.assert_array_equal(item, noise(3 * RATE_HZ)[RATE_HZ : RATE_HZ + RATE_HZ // 2])
    assert encoder.cost(item) == RATE_HZ // 2


def test_the_current_seed_makes_the_weights() -> None:
    def sha256(seed: int) -> str:
        torch.manual_seed(seed)
        return MelCNNEncoder(**SMALL).record.weights["sha256"]

    assert sha256(0) == sha256(0) != sha256(1)


def test_the_record_holds_every_option() -> None:
    options = {
        "hidden_dim": 16,
        "sample_rate_hz": 16_000,
        "n_fft": 512,
        "hop_length": 256,
        "n_mels": 32,
        "duration_seconds": 5.0,
        "channels": [8, 8],
        "dropout": 0.5,
    }
    assert set(options) == set(inspect.signature(MelCNNEncoder).parameters)
    assert MelCNNEncoder(**options).settings.items() >= options.items()
    assert MelCNNEncoder(**options).settings["version"] == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden_dim": 0}, "hidden_dim is 0; expected at least 1"),
        ({"sample_rate_hz": -1}, "sample_rate_hz is -1; expected at least 1"),
        ({"n_mels": 0}, "n_mels is 0; expected at least 1"),
        ({"hop_length": 2048}, "hop_length is 2048; expected 1 to n_fft, 1024"),
        ({"hop_length": 0}, "hop_length is 0; expected 1 to n_fft, 1024"),
        ({"duration_seconds": 0}, "duration_seconds is 0; expected more than 0"),
        ({"channels": []}, r"channels is \[\]; expected at least one number"),
        ({"channels": (8, 0)}, r"channels is \[8, 0\]; expected at least one number, each at least 1"),
        ({"dropout": 1.0}, "dropout is 1.0; expected 0 to below 1"),
    ],
)
def test_a_wrong_option_is_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MelCNNEncoder(**options)
