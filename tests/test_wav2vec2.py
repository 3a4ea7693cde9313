"""`wav2vec2`: small random checkpoints of each model type, against transformers' own extractor and whole model."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import transformers

from featurize.encoders import build_encoder
from featurize.encoders.wav2vec2 import FAMILY, Wav2Vec2Encoder
from featurize.errors import ConfigError
from featurize.segments import RawAudio
from tests.encoders_contract import EncoderContract

RATE_HZ = 16_000
N_LAYERS = 3
TINY = {
    "hidden_size": 32,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "conv_dim": [24] * 7,
    # 16 channels a group: with 8, oneDNN's bfloat16 convolution is wrong where the CPU has AMX (torch 2.14); the models
    # that people use have 48 or 64, where it is right
    "num_conv_pos_embedding_groups": 2,
}
PADDED = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "num_conv_pos_embeddings": 16}
GROUPED = {"feat_extract_norm": "group", "num_conv_pos_embeddings": 16}
KINDS = {
    "wav2vec2": ("Wav2Vec2", GROUPED),
    "wav2vec2-layer-norm": ("Wav2Vec2", PADDED),
    "hubert": ("Hubert", GROUPED),
    "hubert-layer-norm": ("Hubert", PADDED),
    "hubert-batch-norm": ("Hubert", {**PADDED, "conv_pos_batch_norm": True}),
    "wavlm": ("WavLM", GROUPED),
    "wavlm-layer-norm": ("WavLM", PADDED),
    "data2vec-audio": ("Data2VecAudio", {"conv_pos_kernel_size": 9}),
    "unispeech": ("UniSpeech", PADDED),
    "unispeech-sat": ("UniSpeechSat", {**PADDED, "do_stable_layer_norm": False}),
}


def new_model(kind: str, **settings):
    """A random model whose norms and biases do something too."""
    family, own = KINDS[kind]
    torch.manual_seed(sum(map(ord, kind)))
    config = getattr(transformers, f"{family}Config")(**{**TINY, **own, **settings})
    model = getattr(transformers, f"{family}Model")(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 1:
                weight.add_(0.3 * torch.randn_like(weight))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_()
    return model


def save(model, folder: Path, do_normalize: bool = True) -> Path:
    model.save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor(do_normalize=do_normalize).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("wav2vec2-checkpoints")
    return {kind: save(new_model(kind), root / kind, do_normalize="wavlm" not in kind) for kind in KINDS}


def sound(seconds: float, seed: int = 0) -> np.ndarray:
    """Noise over a rising tone, float32 at 16 kHz."""
    t = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    noise = np.random.default_rng(seed).normal(size=len(t))
    return (0.3 * np.sin(2 * np.pi * 220 * (1 + seed) * t * (1 + t)) + 0.05 * noise).astype(np.float32)


def raw_audio(samples: np.ndarray) -> RawAudio:
    return RawAudio(samples=samples.astype("<f4").tobytes(), sample_rate_hz=RATE_HZ)


def encode(encoder: Wav2Vec2Encoder, *sounds: np.ndarray):
    with torch.inference_mode():
        return encoder.eval()(encoder.collate([encoder.prepare(raw_audio(samples)) for samples in sounds]))


def whole_model(folder: Path):
    """Hidden states 0 to N of one unpadded input, (T, D) each, as transformers gives them."""
    extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()

    def states(samples: np.ndarray) -> list[torch.Tensor]:
        inputs = extractor(samples, sampling_rate=RATE_HZ, return_tensors="pt").input_values
        with torch.inference_mode():
            found = model(inputs, output_hidden_states=True)
        # whether the last of `hidden_states` is normalized has changed between versions
        return [state[0] for state in (*found.hidden_states[:-1], found.last_hidden_state)]

    return states


def assert_close(found: torch.Tensor, expected: torch.Tensor, relative: float = 1e-5) -> None:
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= relative * expected.abs().max()


class Wav2Vec2Contract(EncoderContract):
    kind: str

    @pytest.fixture
    def pretrained(self, checkpoints):
        return {"pretrained_model": str(checkpoints[self.kind])}

    @pytest.fixture
    def new_encoder(self, checkpoints):
        return lambda: Wav2Vec2Encoder(pretrained_model=str(checkpoints[self.kind]), window_seconds=0.5)

    @pytest.fixture
    def encoder(self, new_encoder):
        return new_encoder()

    @pytest.fixture
    def raws(self):
        """Less than a frame, less than a window, one, and several."""
        seconds = (0.01, 0.2, 0.21, 0.5, 0.5, 0.51, 1.3, 1 / RATE_HZ)
        return [raw_audio(sound(length, seed)) for seed, length in enumerate(seconds)]


class TestWav2Vec2Contract(Wav2Vec2Contract):
    kind = "wav2vec2"


class TestWav2Vec2LayerNormContract(Wav2Vec2Contract):
    kind = "wav2vec2-layer-norm"


class TestHubertContract(Wav2Vec2Contract):
    kind = "hubert"


class TestHubertBatchNormContract(Wav2Vec2Contract):
    kind = "hubert-batch-norm"


class TestWavLMContract(Wav2Vec2Contract):
    kind = "wavlm-layer-norm"


class TestData2VecAudioContract(Wav2Vec2Contract):
    kind = "data2vec-audio"


class TestUniSpeechSatContract(Wav2Vec2Contract):
    kind = "unispeech-sat"


@pytest.mark.parametrize("kind", KINDS)
def test_every_choice_of_layers_is_what_the_whole_model_gives(checkpoints, kind):
    samples = sound(0.7)
    states = whole_model(checkpoints[kind])(samples)
    assert len(states) == N_LAYERS + 1
    choices = {
        "last": [3],
        None: [3],
        0: [0],
        1: [1],
        2: [2],
        3: [3],
        -1: [3],
        -4: [0],
        (0, 2): [0, 2],
        (-1, 1): [1, 3],
    }
    for layers, resolved in choices.items():
        wanted = list(layers) if isinstance(layers, tuple) else layers
        encoder = Wav2Vec2Encoder(pretrained_model=str(checkpoints[kind]), layers=wanted)
        encoder.with_frames = True
        assert encoder.settings["layers"] == resolved and len(encoder.model.encoder.layers) == max(resolved)
        expected = torch.stack([states[layer] for layer in resolved]).mean(dim=0)
        encoded = encode(encoder, samples)
        assert_close(encoded.frames[0], expected)
        assert_close(encoded.pooled[0], expected.mean(dim=0))


@pytest.mark.parametrize("kind", KINDS)
def test_no_weight_is_kept_that_is_not_used(checkpoints, kind):
    for layers in (0, 1, [1, 2]):
        encoder = Wav2Vec2Encoder(pretrained_model=str(checkpoints[kind]), layers=layers)
        encoder(encoder.collate([encoder.prepare(raw_audio(sound(0.1)))])).pooled.square().sum().backward()
        assert all(weight.grad is not None for weight in encoder.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_long_audio_is_cut_into_windows_of_equal_weight(checkpoints, kind):
    samples = sound(2.5)
    states = whole_model(checkpoints[kind])
    windows = [states(samples[start : start + RATE_HZ])[-1] for start in (0, 12_000, 24_000)]
    encoder = Wav2Vec2Encoder(pretrained_model=str(checkpoints[kind]), window_seconds=1.0)
    encoder.with_frames = True
    encoded = encode(encoder, samples, sound(0.3), sound(1.0))
    assert_close(encoded.pooled[0], torch.stack([window.mean(dim=0) for window in windows]).mean(dim=0))
    assert_close(encoded.frames[0], torch.cat(windows))
    assert encoded.frame_mask.sum(dim=1).tolist() == [3 * 49, 14, 49]
    for row, length in ((1, 0.3), (2, 1.0)):
        expected = states(sound(length))[-1]
        assert_close(encoded.pooled[row], expected.mean(dim=0))
        assert_close(encoded.frames[row][encoded.frame_mask[row]], expected)
        assert not encoded.frames[row][~encoded.frame_mask[row]].any()


@pytest.mark.parametrize("kind", KINDS)
def test_what_stands_in_the_padding_does_not_matter(checkpoints, kind):
    encoder = Wav2Vec2Encoder(pretrained_model=str(checkpoints[kind]), window_seconds=1.0).eval()
    items = [encoder.prepare(raw_audio(sound(length))) for length in (1.0, 0.4, 0.05)]
    batch = encoder.collate(items)
    padding = torch.arange(RATE_HZ) >= batch["n_samples"][:, None]
    assert padding.sum(dim=1).tolist() == [0, 9_600, 15_200] and not batch["samples"][padding].any()
    with torch.inference_mode():
        pooled = encoder(batch).pooled
        dirty = encoder({**batch, "samples": batch["samples"].masked_fill(padding, torch.nan)}).pooled
        alone = torch.cat([encoder(encoder.collate([item])).pooled for item in items])
    assert torch.equal(dirty, pooled)
    assert_close(pooled, alone)


def test_only_where_padding_does_not_tell_are_lengths_mixed(checkpoints):
    for kind, folder in checkpoints.items():
        encoder = Wav2Vec2Encoder(pretrained_model=str(folder))
        runs = []
        encoder.model.register_forward_pre_hook(lambda _, inputs, runs=runs: runs.append(len(inputs[0])))
        encode(encoder, sound(0.3), sound(0.2), sound(0.3))
        mixes = kind in ("wav2vec2-layer-norm", "hubert-layer-norm", "unispeech", "unispeech-sat")
        assert runs == ([3] if mixes else [2, 1]), kind


@pytest.mark.parametrize("kind", ["wav2vec2", "wav2vec2-layer-norm"])
def test_a_long_recording_never_fills_more_than_the_budget(checkpoints, kind):
    encoder = Wav2Vec2Encoder(pretrained_model=str(checkpoints[kind]), window_seconds=0.5)
    sounds = sound(3.2), sound(0.2), sound(0.5)
    together = encode(encoder, *sounds).pooled
    encoder.batch_budget, sizes = 20_000, []
    encoder.model.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].numel()))
    assert_close(encode(encoder, *sounds).pooled, together)
    assert max(sizes) == 16_000 and len(sizes) == 5
    assert encoder.cost(encoder.prepare(raw_audio(sounds[0]))) == 7 * 8_000


@pytest.mark.parametrize("kind", KINDS)
def test_training_is_as_deterministic_as_the_dropout(tmp_path, kind):
    """Neither SpecAugment nor LayerDrop is left."""
    dropouts = ("hidden_dropout", "activation_dropout", "attention_dropout", "feat_proj_dropout")
    settings = {"layerdrop": 0.9, "mask_time_prob": 0.9, "mask_time_length": 2, "mask_feature_prob": 0.5}
    model = new_model(kind, **settings, mask_feature_length=2, **dict.fromkeys(dropouts, 0.0))
    encoder = Wav2Vec2Encoder(pretrained_model=str(save(model, tmp_path / kind)))
    expected = encode(encoder, sound(0.5), sound(0.5, seed=1)).pooled
    encoder.train()
    for module in encoder.modules():  # it is meant to follow the batch while it trains
        if isinstance(module, torch.nn.BatchNorm1d):
            module.eval()
    pooled = encoder(encoder.collate([encoder.prepare(raw_audio(sound(0.5, seed))) for seed in (0, 1)])).pooled
    assert_close(pooled, expected)
    pooled.sum().backward()


def test_an_adapter_and_recorded_outputs_are_left_out(tmp_path):
    model = new_model("wav2vec2", add_adapter=True, output_hidden_size=16, output_hidden_states=True)
    encoder = Wav2Vec2Encoder(pretrained_model=str(save(model, tmp_path / "adapter")))
    encoded = encode(encoder, sound(0.5))
    assert encoder.width == 32
    assert pickle.dumps(encoder), "transformers' own recording leaves hooks that cannot be pickled"
    model.adapter = None
    with torch.inference_mode():
        expected = model(torch.from_numpy(encoder.prepare(raw_audio(sound(0.5))))).last_hidden_state
    assert_close(encoded.pooled, expected.mean(dim=1))


@pytest.mark.parametrize("do_normalize", [True, False])
@pytest.mark.parametrize("amplitude", [0.0, 1e-30, 1e-4, 1.0, 2.0**30])
def test_windows_are_normalized_as_the_extractor_does(tmp_path, do_normalize, amplitude):
    folder = save(new_model("wav2vec2"), tmp_path / "checkpoint", do_normalize)
    encoder = Wav2Vec2Encoder(pretrained_model=str(folder), window_seconds=1.0)
    extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
    samples = np.float32(amplitude) * (sound(1.5) + 0.25)
    windows = encoder.prepare(raw_audio(samples))
    assert windows.dtype == np.float32 and windows.shape == (2, RATE_HZ)
    for window, start in zip(windows, (0, 8_000), strict=True):
        alone = extractor(samples[start : start + RATE_HZ], sampling_rate=RATE_HZ, return_tensors="np").input_values[0]
        np.testing.assert_array_equal(window, alone)
    assert torch.isfinite(encode(encoder, samples).pooled).all()


def test_audio_shorter_than_a_frame_is_padded_behind_what_was_normalized(checkpoints):
    encoder = Wav2Vec2Encoder(pretrained_model=str(checkpoints["wav2vec2"]))
    samples = sound(0.02)
    item = encoder.prepare(raw_audio(samples))
    extractor = transformers.AutoFeatureExtractor.from_pretrained(checkpoints["wav2vec2"])
    settings = {"padding": "max_length", "max_length": 400, "return_attention_mask": True, "return_tensors": "np"}
    np.testing.assert_allclose(item, extractor(samples, sampling_rate=RATE_HZ, **settings).input_values, rtol=1e-6)
    assert item.shape == (1, 400) and item[0, :320].any() and not item[0, 320:].any()
    assert encoder.prepare(raw_audio(np.ones(399))).shape == (1, 400)
    assert encoder.prepare(raw_audio(np.ones(401))).shape == (1, 401)


@pytest.mark.parametrize("kind", KINDS)
def test_silence_and_a_single_sample_have_finite_vectors(checkpoints, kind):
    encoder = Wav2Vec2Encoder(pretrained_model=str(checkpoints[kind]), layers=[0, 1, 2, 3])
    pooled = encode(encoder, np.zeros(RATE_HZ), np.zeros(1), np.ones(1), -np.ones(50)).pooled
    assert torch.isfinite(pooled).all()


def test_only_the_seconds_of_the_segment_matter(checkpoints, tmp_path):
    encoder = Wav2Vec2Encoder(pretrained_model=str(checkpoints["wav2vec2"]))
    t = np.arange(3 * 96_000) / 96_000
    left, right = 0.4 * np.sin(2 * np.pi * 440 * t), 0.2 * np.sin(2 * np.pi * 660 * t)
    other = np.random.default_rng(0).uniform(-1, 1, left.shape)
    inside = (t >= 1) & (t < 2)
    soundfile.write(tmp_path / "a.wav", np.stack([left, right], 1), 96_000, subtype="FLOAT")
    soundfile.write(
        tmp_path / "b.wav", np.where(inside[:, None], np.stack([left, right], 1), other[:, None]), 96_000, "FLOAT"
    )
    a, b = (
        encoder.prepare(RawAudio(path=tmp_path / name, start_seconds=1.0, end_seconds=2.0))
        for name in ("a.wav", "b.wav")
    )
    np.testing.assert_array_equal(a, b)
    mono = ((left + right) / 2)[inside][::6]  # nothing in it that 16 kHz could not hold
    assert a.shape == (1, RATE_HZ)
    np.testing.assert_allclose(a[0, 200:-200], ((mono - mono.mean()) / mono.std())[200:-200], atol=0.01)
    assert not np.array_equal(a, encoder.prepare(RawAudio(path=tmp_path / "a.wav", start_seconds=1.5, end_seconds=2.5)))
    short = Wav2Vec2Encoder(pretrained_model=str(checkpoints["wav2vec2"]), duration_seconds=1.0)
    np.testing.assert_array_equal(a, short.prepare(RawAudio(path=tmp_path / "b.wav", start_seconds=1.0)))


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_gives_float32_vectors_that_hardly_differ(checkpoints, kind):
    encoder = Wav2Vec2Encoder(pretrained_model=str(checkpoints[kind]), window_seconds=0.5)
    encoder.with_frames = True
    sounds = sound(1.2), sound(0.3, seed=1)
    exact = encode(encoder, *sounds).pooled
    with torch.autocast("cpu", torch.bfloat16):
        encoded = encode(encoder, *sounds)
    assert encoded.pooled.dtype == encoded.frames.dtype == torch.float32
    assert not torch.equal(encoded.pooled, exact)
    assert torch.cosine_similarity(encoded.pooled, exact).min() > 0.999
    for row, mask in enumerate(encoded.frame_mask):  # the mean over frames is not taken in bfloat16
        assert_close(encoded.pooled[row], encoded.frames[row][mask].mean(dim=0), 1e-5)


def test_the_record_tells_settings_and_origin(checkpoints, tmp_path):
    folder = str(checkpoints["wav2vec2"])
    records = [
        Wav2Vec2Encoder(pretrained_model=folder, **options).record.to_dict()
        for options in ({}, {"layers": [1, 3]}, {"window_seconds": 5}, {"duration_seconds": 5})
    ]
    assert len({json.dumps(record) for record in records}) == len(records)
    assert records[0]["parameters"] == Wav2Vec2Encoder(pretrained_model=folder, layers=-1).settings
    assert records[0]["weights"].keys() == {"source", "sha256"} and records[0]["weights"]["source"] == "wav2vec2"
    moved = shutil.copytree(folder, tmp_path / "wav2vec2")
    assert Wav2Vec2Encoder(pretrained_model=str(moved)).record.to_dict() == records[0]


def test_a_checkpoint_as_the_first_ones_were_published(checkpoints, tmp_path):
    """A `.bin` of a model with heads, all names prefixed, weight normalization under its old names."""
    folder = shutil.copytree(checkpoints["wav2vec2"], tmp_path / "published")
    names = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    state = transformers.AutoModel.from_pretrained(folder).state_dict()
    for new, old in names.items():
        state = {name.replace(new, old): weight for name, weight in state.items()}
    assert sum(name.endswith(("weight_g", "weight_v")) for name in state) == 2
    state = {f"wav2vec2.{name}": weight for name, weight in state.items()} | {"project_q.weight": torch.zeros(2, 2)}
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    published, saved = (Wav2Vec2Encoder(pretrained_model=str(path)) for path in (folder, checkpoints["wav2vec2"]))
    assert published.weights()["sha256"] == saved.weights()["sha256"]
    assert torch.equal(encode(published, sound(0.5)).pooled, encode(saved, sound(0.5)).pooled)


def test_without_its_own_preprocessor_the_defaults_hold(checkpoints, tmp_path):
    folder = shutil.copytree(checkpoints["wavlm"], tmp_path / "bare")
    assert Wav2Vec2Encoder(pretrained_model=str(folder)).settings["do_normalize"] is False
    (folder / "preprocessor_config.json").unlink()
    settings = Wav2Vec2Encoder(pretrained_model=str(folder)).settings
    assert settings["do_normalize"] is True and settings["sample_rate_hz"] == RATE_HZ
    assert settings["preprocessor"] == "defaults of Wav2Vec2FeatureExtractor"
    (folder / "preprocessor_config.json").write_text("{")
    with pytest.raises(ConfigError, match="Cannot load a checkpoint from"):
        Wav2Vec2Encoder(pretrained_model=str(folder))


def test_from_the_hub_a_preprocessor_must_be_known_to_be_missing(checkpoints, tmp_path):
    """In a process of its own, with a cache of its own: what the hub said is kept there."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--someone--wavlm"
    snapshot = shutil.copytree(checkpoints["wavlm"], repository / "snapshots" / commit)
    (snapshot / "preprocessor_config.json").unlink()
    program = f"""
import json
from pathlib import Path
from featurize.encoders import build_encoder
from featurize.errors import ConfigError
def found():
    try:
        encoder = build_encoder("wav2vec2", {{"pretrained_model": "someone/wavlm", "revision": "{commit}"}})
        return {{**encoder.settings, **encoder.weights()}}
    except ConfigError as error:
        return {{"error": str(error)}}
unknown = found()
missing = Path({str(repository)!r}, ".no_exist", "{commit}")
missing.mkdir(parents=True)
for name in ("preprocessor_config.json", "processor_config.json"):
    (missing / name).touch()
print(json.dumps([unknown, found()]))
"""
    unknown, known = run_python(program, HF_HUB_CACHE=str(tmp_path), HF_HUB_OFFLINE="1")
    assert "Cannot load someone/wavlm" in unknown["error"]
    assert known["preprocessor"] == "defaults of Wav2Vec2FeatureExtractor"
    assert known["source"] == "someone/wavlm" and known["revision"] == commit


def test_other_processes_prepare_without_transformers(checkpoints, tmp_path):
    encoder = Wav2Vec2Encoder(pretrained_model=str(checkpoints["wav2vec2"]), window_seconds=1.0)
    light = pickle.dumps(encoder.without_weights())
    assert len(light) < 5_000
    (tmp_path / "job").write_bytes(pickle.dumps((light, raw_audio(sound(1.5)))))
    program = f"""
import json, pickle, sys
light, raw = pickle.loads(open({str(tmp_path / "job")!r}, "rb").read())
item = pickle.loads(light).prepare(raw)
open({str(tmp_path / "item")!r}, "wb").write(pickle.dumps(item))
print(json.dumps(sorted({{"transformers", "laion_clap"}} & set(sys.modules))))
"""
    assert run_python(program) == []
    item = pickle.loads((tmp_path / "item").read_bytes())
    np.testing.assert_array_equal(item, encoder.prepare(raw_audio(sound(1.5))))


def run_python(program: str, **environment: str):
    """What a Python program prints as JSON."""
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": 4}, r"layers has 4; expected \"last\", or one or several numbers from -4 to 3 \(0 is what the"),
        ({"layers": [0, -5]}, "layers has -5; expected"),
        ({"layers": []}, r"layers has \[\]; expected"),
        ({"layers": "first"}, "layers has 'first'; expected"),
        ({"layers": True}, "layers has True; expected"),
        ({"layers": [1.0]}, "layers has 1.0; expected"),
        ({"window_seconds": 0.02}, "window_seconds is 0.02; expected at least 0.025, for one frame"),
        ({"window_seconds": float("inf")}, "window_seconds is inf"),
        ({"window_seconds": float("nan")}, "window_seconds is nan"),
        ({"window_seconds": "10"}, "cannot take .*window_seconds='10'"),
        ({"duration_seconds": 0}, "duration_seconds is 0; expected more than 0"),
    ],
)
def test_an_option_that_cannot_be_is_refused(checkpoints, options, message):
    with pytest.raises(ConfigError, match=message):
        build_encoder("wav2vec2", {"pretrained_model": str(checkpoints["wav2vec2"]), **options})


def test_other_models_are_refused(tmp_path):
    config = transformers.BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=9)
    transformers.BertModel(config).save_pretrained(tmp_path / "text")
    with pytest.raises(ConfigError, match="of type bert; expected one of the wav2vec2 family: wav2vec2, hubert, wavlm"):
        build_encoder("wav2vec2", {"pretrained_model": str(tmp_path / "text")})
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "config.json").write_text('{"model_type": "wav2vec9"}')
    for name in ("new", "nowhere"):
        with pytest.raises(ConfigError, match=f"Cannot load .*{name}") as raised:
            build_encoder("wav2vec2", {"pretrained_model": str(tmp_path / name)})
        assert len(str(raised.value).splitlines()) <= 2
    assert {transformers.CONFIG_MAPPING[family].model_type for family in FAMILY} == set(FAMILY)
