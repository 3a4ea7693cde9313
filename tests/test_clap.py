"""`clap`: the numbers of transformers and of laion-clap, without their chance; from small random checkpoints."""

from __future__ import annotations

import os
import pickle
import re
import shutil
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from zipfile import ZIP_STORED, ZipFile

import librosa
import numpy as np
import pytest
import safetensors.torch
import torch
from torch.nn.functional import normalize

from featurize.encode import run
from featurize.encoders import build_encoder, laion, pretrained
from featurize.encoders.clap import CLAPEncoder
from featurize.errors import ConfigError
from tests.encoders_contract import EncoderContract
from tests.test_encoders import demo_raws

RATE_HZ, WINDOW = 48_000, 480_000
HF, LAION = ("unfused", "fused"), ("unfused.pt", "fused.pt")


# ---- small random checkpoints ----


def randomize(module: torch.nn.Module) -> None:
    """Weights that tell inputs apart; fresh ones are nearly linear, and all biases zero."""
    draw = torch.Generator().manual_seed(0)
    for name, tensor in module.state_dict().items():
        if tensor.dtype != torch.float32 or name.endswith("logit_scale"):
            continue
        noise = torch.randn(tensor.shape, generator=draw)
        if name.endswith("running_var"):
            tensor.copy_(300 + 100 * noise.tanh())
        elif name.endswith("running_mean"):
            tensor.copy_(10 * noise - 40)
        elif tensor.ndim > 1:
            tensor.copy_(noise * 0.7 / tensor[0].numel() ** 0.5)
        else:
            tensor.copy_(name.endswith("weight") + 0.1 * noise)


def save_hugging_face(folder: Path, fused: bool) -> None:
    from transformers import ClapConfig, ClapFeatureExtractor, ClapModel

    audio = {"patch_embeds_hidden_size": 8, "hidden_size": 64, "enable_fusion": fused}
    audio |= {"depths": [2, 1, 2, 1], "num_attention_heads": [1, 2, 2, 4]}
    text = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = ClapModel(ClapConfig(text_config=text, audio_config=audio, projection_dim=24))
    randomize(model)
    model.save_pretrained(folder)
    extractor = ClapFeatureExtractor(truncation="fusion" if fused else "rand_trunc", frequency_min=50)
    extractor.save_pretrained(folder)


def laion_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The audio side of a transformers state dict, as laion-clap's `CLAP` calls it."""
    renamed = {}
    for name, value in state.items():
        for old, new in (
            ("audio_model.audio_encoder.batch_norm", "audio_branch.bn0"),
            ("audio_model.audio_encoder", "audio_branch"),
            ("layernorm_before", "norm1"),
            ("layernorm_after", "norm2"),
            ("attention.output.dense", "attn.proj"),
            ("attention.self", "attn"),
            ("intermediate.dense", "mlp.fc1"),
            ("output.dense", "mlp.fc2"),
            ("audio_projection.linear1", "audio_projection.0"),
            ("audio_projection.linear2", "audio_projection.2"),
        ):
            name = name.replace(old, new)
        renamed[name] = value
    for name in [name for name in renamed if ".attn.query." in name]:
        parts = [renamed.pop(name.replace("query", part)) for part in ("query", "key", "value")]
        renamed[name.replace("query", "qkv")] = torch.cat(parts)
    return {name: value for name, value in renamed.items() if name.startswith("audio_")}


def laion_htsat(weights: dict[str, torch.Tensor], fused: bool) -> torch.nn.Module:
    """laion-clap's own, whole."""
    audio = laion._below(weights, "audio_branch.")
    how = {"enable_fusion": True, "fusion_type": "aff_2d"} if fused else {}
    htsat = laion._new_htsat({**laion._architecture(audio), **how}, 1024, 64)
    missing, unknown = htsat.load_state_dict(audio, strict=False)
    unlearned = ("attn_mask", ".stft.", ".melW", "tscam_conv.", "head.")  # or what transformers has no use for
    assert not unknown and all(any(part in name for part in unlearned) for name in missing)
    return htsat.eval()


def save_laion(path: Path, weights: dict[str, torch.Tensor], htsat: torch.nn.Module) -> None:
    """With all that LAION's training saves beside the weights."""
    whole = {**weights, **{f"audio_branch.{name}": value for name, value in htsat.state_dict().items()}}
    whole |= {"audio_transform.sequential.0.weight": torch.ones(24, 24), "text_branch.pooler.dense.bias": torch.ones(3)}
    whole |= {"logit_scale_a": torch.ones([]), "logit_scale_t": torch.ones([])}
    group = {"lr": np.float64(1e-4), "weight_decay": np.float32(0.1), "step": np.int64(3), "params": [0, 1]}
    checkpoint = {
        "epoch": 45,
        "name": "2022-10-14-model_HTSAT-small",
        "state_dict": OrderedDict((f"module.{name}", value) for name, value in whole.items()),
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [group]},
    }
    torch.save(checkpoint, path)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> Path:
    """Folders `unfused` and `fused`, and the same weights in `unfused.pt` and `fused.pt`."""
    from transformers import ClapModel

    root = tmp_path_factory.mktemp("clap")
    for name in HF:
        save_hugging_face(root / name, fused=name == "fused")
        weights = laion_names(ClapModel.from_pretrained(root / name).state_dict())
        save_laion(root / f"{name}.pt", weights, laion_htsat(weights, fused=name == "fused"))
    return root


@pytest.fixture(scope="module")
def load(checkpoints):
    """An encoder by the name of its checkpoint; one of each, shared, in evaluation mode."""
    loaded: dict[str, CLAPEncoder] = {}

    def get(name: str) -> CLAPEncoder:
        if name not in loaded:
            loaded[name] = CLAPEncoder(pretrained_model=str(checkpoints / name)).eval()
        return loaded[name]

    return get


# ---- sounds and vectors ----


def sound(n: int, seed: int = 0) -> np.ndarray:
    """Noise and a glide, float32 (n,)."""
    t = np.arange(n) / RATE_HZ
    noise = np.random.default_rng(seed).standard_normal(n)
    return (0.3 * np.sin(2 * np.pi * (200 + 150 * seed + 80 * t) * t) + 0.05 * noise).astype(np.float32)


@torch.inference_mode()
def encode(encoder: CLAPEncoder, *sounds: np.ndarray) -> torch.Tensor:
    return encoder(encoder.collate([encoder.prepare_waveform(samples) for samples in sounds])).pooled


@torch.inference_mode()
def encode_frames(encoder: CLAPEncoder, *sounds: np.ndarray):
    encoder.with_frames = True
    try:
        return encoder(encoder.collate([encoder.prepare_waveform(samples) for samples in sounds]))
    finally:
        encoder.with_frames = False


@torch.inference_mode()
def by_transformers(folder: Path, samples: np.ndarray) -> torch.Tensor:
    """What its extractor and its whole model make of no more than a window; no input is said to be longer."""
    from transformers import ClapFeatureExtractor, ClapModel

    extractor, model = ClapFeatureExtractor.from_pretrained(folder), ClapModel.from_pretrained(folder).eval()
    mel = extractor(samples, sampling_rate=RATE_HZ, return_tensors="pt")["input_features"].float()
    return model.get_audio_features(input_features=mel, is_longer=torch.tensor([[False]])).pooler_output[0]


def deviation(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found - expected).abs().max() / expected.abs().max()).item()


# ---- the contract ----


class CLAPContract(EncoderContract):
    checkpoint: str

    @pytest.fixture
    def pretrained(self, checkpoints):
        return {"pretrained_model": str(checkpoints / self.checkpoint)}

    @pytest.fixture
    def new_encoder(self, checkpoints):
        return lambda: CLAPEncoder(pretrained_model=str(checkpoints / self.checkpoint))

    @pytest.fixture
    def encoder(self, new_encoder):
        return new_encoder().eval()

    @pytest.fixture
    def raws(self, demo_data):
        return demo_raws(demo_data, "audio", most=6)


class TestUnfusedContract(CLAPContract):
    checkpoint = "unfused"


class TestFusedContract(CLAPContract):
    checkpoint = "fused"


class TestLaionContract(CLAPContract):
    checkpoint = "unfused.pt"


# ---- the numbers of others ----


@pytest.mark.parametrize("n_samples", [WINDOW, 130_001, 700, 1])
@pytest.mark.parametrize("name", HF)
def test_a_window_reads_as_in_transformers(checkpoints, load, name, n_samples):
    expected = by_transformers(checkpoints / name, sound(n_samples))
    assert deviation(encode(load(name), sound(n_samples))[0], expected) < 1e-5


@pytest.mark.parametrize("filling", ["repeatpad", "repeat", "pad"])
def test_everything_comes_from_the_extractors_configuration(checkpoints, tmp_path, filling):
    from transformers import ClapFeatureExtractor

    folder = tmp_path / "other"
    shutil.copytree(checkpoints / "unfused", folder)
    ClapFeatureExtractor(
        truncation="rand_trunc",
        padding=filling,
        max_length_s=4,
        hop_length=240,
        fft_window_size=2048,
        frequency_min=100,
        frequency_max=9000,
    ).save_pretrained(folder)
    encoder = CLAPEncoder(pretrained_model=str(folder)).eval()
    assert encoder.window_samples == 4 * RATE_HZ and encoder.settings["filling"] == filling
    assert deviation(encode(encoder, sound(70_000))[0], by_transformers(folder, sound(70_000))) < 1e-5


@pytest.mark.parametrize("name", HF)
def test_longer_audio_is_the_mean_of_whole_windows(checkpoints, load, name):
    """25 s: windows at 0, 7.5 and 15 s."""
    samples = sound(25 * RATE_HZ)
    windows = [samples[start : start + WINDOW] for start in (0, int(7.5 * RATE_HZ), 15 * RATE_HZ)]
    alone = torch.stack([by_transformers(checkpoints / name, window) for window in windows])
    expected = normalize(alone.mean(dim=0), dim=0)
    assert deviation(encode(load(name), samples)[0], expected) < 1e-5
    item = load(name).prepare_waveform(samples)
    assert item.shape == (3, WINDOW) and load(name).cost(item) == 3 * WINDOW
    assert load(name).cost(load(name).prepare_waveform(sound(9))) == WINDOW, "it will be filled up"


@pytest.mark.parametrize("name", LAION)
def test_a_window_reads_as_in_laion_clap(checkpoints, load, name):
    """Its whole HTSAT on its own spectrogram; if fused, on four equal ones, as its `get_audio_features` makes them."""
    fused, samples = name == "fused.pt", sound(WINDOW)
    htsat = laion_htsat(laion._read(checkpoints / name), fused)
    if fused:
        spectrum = librosa.stft(samples.astype(np.float64), n_fft=1024, hop_length=480, pad_mode="reflect")
        filters = librosa.filters.mel(sr=RATE_HZ, n_fft=1024, n_mels=64, fmin=50, fmax=14000, htk=True, norm=None)
        mel = filters @ np.abs(spectrum) ** 2
        decibels = torch.from_numpy(librosa.power_to_db(mel, amin=1e-10, top_db=None).T).float()
        inputs = {"mel_fusion": decibels.expand(1, 4, -1, -1), "longer": torch.tensor([False])}
    else:
        inputs = {"waveform": torch.from_numpy(samples)[None]}
    with torch.inference_mode():
        expected = normalize(load(name).projection(htsat(inputs, device="cpu")["embedding"]), dim=1)
    assert deviation(encode(load(name), samples), expected) < 1e-5


@pytest.mark.parametrize("name", HF)
def test_both_ways_agree(load, name):
    sounds = [sound(WINDOW), sound(100_000, seed=1), sound(WINDOW + 1, seed=2)]
    expected = encode_frames(load(name), *sounds)
    found = encode_frames(load(f"{name}.pt"), *sounds)
    assert deviation(found.pooled, expected.pooled) < 1e-5
    assert torch.equal(found.frame_mask, expected.frame_mask)
    assert deviation(found.frames, expected.frames) < 1e-5


def test_fused_and_unfused_differ_in_their_filters(load):
    """The same sizes, and mostly the same weights: but not the same spectrogram."""
    assert deviation(load("fused").log_mel.filters, load("unfused").log_mel.filters) > 0.5
    assert [load(name).settings["mel_scale"] for name in (*HF, *LAION)] == ["slaney", "htk", "slaney", "htk"]


# ---- what chance, silence and precision do ----


@pytest.mark.parametrize("name", [*HF, *LAION])
def test_chance_has_no_part(load, name):
    sounds = [sound(50_000), sound(WINDOW + 90_000)]
    vectors = []
    for seed in range(3):
        np.random.seed(seed)  # noqa: NPY002 (the global one is what transformers and laion-clap draw from)
        torch.manual_seed(seed)
        vectors.append(encode(load(name), *sounds))
    assert torch.equal(vectors[0], vectors[1]) and torch.equal(vectors[0], vectors[2])


def test_loading_leaves_chance_and_the_process_as_they_were(checkpoints):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    before = list(sys.argv), list(sys.path)
    CLAPEncoder(pretrained_model=str(checkpoints / "unfused.pt"))
    assert torch.equal(torch.rand(3), expected)
    assert (list(sys.argv), list(sys.path)) == before and "laion_clap" not in sys.modules


@pytest.mark.parametrize(
    "samples", [np.zeros(1), np.zeros(WINDOW + 9), np.ones(1), np.full(480, -1e-30), 2e9 * sound(99)]
)
@pytest.mark.parametrize("name", ["unfused", "fused.pt"])
def test_everything_has_a_vector_of_unit_length(load, name, samples):
    encoded = encode_frames(load(name), samples.astype(np.float32))
    assert encoded.pooled.norm(dim=1).item() == pytest.approx(1, abs=1e-5)
    assert encoded.frames.isfinite().all()


@pytest.mark.parametrize("name", ["unfused", "unfused.pt"])
def test_bf16_is_close_and_comes_back_as_fp32(load, name):
    encoder = load(name)
    batch = encoder.collate([encoder.prepare_waveform(sound(WINDOW, seed)) for seed in range(3)])
    with torch.inference_mode():
        exact = run(encoder, batch).pooled
        encoder.precision = "bf16"
        try:
            rough = run(encoder, batch).pooled
        finally:
            encoder.precision = "fp32"
    assert rough.dtype == torch.float32 and not torch.equal(rough, exact)
    assert (rough * exact).sum(dim=1).min() > 0.995
    assert rough.norm(dim=1).numpy() == pytest.approx(1, abs=1e-5)


def test_an_hour_needs_no_more_memory_than_a_batch(load, monkeypatch):
    """Windows pass through the network in parts, which changes nothing."""
    samples = sound(4 * WINDOW + 5)
    whole = encode(load("unfused"), samples)
    sizes = []
    monkeypatch.setattr(load("unfused"), "batch_budget", 2 * WINDOW)
    watch = load("unfused").branch.register_forward_hook(lambda _, inputs, __: sizes.append(len(inputs[0])))
    try:
        assert deviation(encode(load("unfused"), samples), whole) < 1e-5
    finally:
        watch.remove()
    assert sizes == [2, 2, 1]


# ---- frames ----


@pytest.mark.parametrize("name", ["unfused", "fused.pt"])
def test_an_event_lights_up_the_frame_of_its_time(load, name):
    """32 frames of 312.5 ms, and another quarter of the image from frames 8, 16 and 24 on."""
    quiet = 0.01 * sound(WINDOW)
    burst = np.random.default_rng(3).standard_normal(4800).astype(np.float32)
    frame_samples = WINDOW // 32
    before = encode_frames(load(name), quiet).frames[0]
    for frame in (0, 7, 8, 15, 20, 31):
        loud = quiet.copy()
        loud[frame * frame_samples + 5000 : frame * frame_samples + 9800] += burst
        change = (encode_frames(load(name), loud).frames[0] - before).norm(dim=1)
        assert change.argmax() == frame


def test_frames_end_where_the_audio_does(load):
    encoder = load("unfused")
    sounds = [sound(WINDOW // 4), sound(WINDOW // 4 + 1), sound(1), sound(2 * WINDOW)]
    encoded = encode_frames(encoder, *sounds)
    assert encoded.frame_mask.sum(dim=1).tolist() == [8, 9, 1, 64]
    assert encoded.frames.shape == (4, 64, encoder.width)
    lengths = encoded.frames.norm(dim=2)
    torch.testing.assert_close(lengths, encoded.frame_mask.float())
    torch.testing.assert_close(encoded.pooled, encode(encoder, *sounds))
    alone = [encode_frames(encoder, sounds[3][half : half + WINDOW]).frames[0] for half in (0, WINDOW)]
    torch.testing.assert_close(encoded.frames[3], torch.cat(alone), atol=1e-5, rtol=1e-4)


# ---- facts ----


def test_the_record_tells_where_the_numbers_come_from(load):
    for name, runs_by in (("unfused", "transformers"), ("unfused.pt", "laion-clap")):
        record = load(name).record
        assert record.width == 24 and record.weights["source"] == name and len(record.weights["sha256"]) == 64
        assert record.parameters["quantized_to_int16"] is False and record.parameters["window_samples"] == WINDOW
        assert record.libraries.keys() == {runs_by, "librosa", "numpy", "soundfile", "soxr", "torch"}
        assert (record.parameters["lowest_hz"], record.parameters["highest_hz"]) == (50, 14000)


def test_duration_cuts_what_is_decoded(checkpoints, demo_data):
    raw = demo_raws(demo_data, "audio", most=1)[0]
    encoder = CLAPEncoder(pretrained_model=str(checkpoints / "unfused"), duration_seconds=0.5)
    assert encoder.prepare(raw).shape == (1, RATE_HZ // 2)
    assert encoder.settings["duration_seconds"] == 0.5


def test_other_processes_prepare_without_a_model_and_can_be_sent_one(checkpoints, load, tmp_path):
    light = pickle.dumps(load("unfused").without_weights())
    assert len(light) < 5_000
    (tmp_path / "light").write_bytes(light)
    (tmp_path / "whole").write_bytes(pickle.dumps(load("unfused.pt")))
    np.save(tmp_path / "sound.npy", sound(50_000))
    program = """
import pickle, sys
import numpy as np
light = pickle.load(open("light", "rb"))
item = light.prepare_waveform(np.load("sound.npy"))
assert not {"transformers", "laion_clap", "torchlibrosa"} & set(sys.modules)
assert not [*light.parameters(), *light.buffers()]
whole = pickle.load(open("whole", "rb"))
np.save("vector.npy", whole(whole.collate([item])).pooled.detach().numpy())
"""
    environment = {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1", "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = torch.from_numpy(np.load(tmp_path / "vector.npy"))
    assert deviation(found, encode(load("unfused.pt"), sound(50_000))) < 1e-5


# ---- what can be wrong with a checkpoint ----


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"duration_seconds": 0}, "duration_seconds is 0; expected more than 0"),
        ({"pretrained_model": "some.pt", "revision": "main"}, "revision is 'main', but some.pt is a file"),
        ({"pretrained_model": "no/such.pt"}, "There is no file no/such.pt; expected a LAION CLAP checkpoint"),
    ],
)
def test_wrong_options_are_a_line(options, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        build_encoder("clap", options)


def test_an_unknown_name_says_where_it_was_looked_for(monkeypatch):
    monkeypatch.setattr(pretrained, "_offline", lambda: True)
    with pytest.raises(ConfigError, match="(?s)Cannot load someone/no-such-clap: no such folder, not in .*--option"):
        build_encoder("clap", {"pretrained_model": "someone/no-such-clap"})


def test_a_folder_of_something_else_says_what_is_wrong(checkpoints, tmp_path):
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    BertModel(BertConfig(vocab_size=16, **sizes)).save_pretrained(tmp_path / "bert")
    shutil.copytree(checkpoints / "unfused", tmp_path / "bare", ignore=shutil.ignore_patterns("preprocessor*"))
    shutil.copytree(checkpoints / "unfused", tmp_path / "other")
    weights = {"audio_projection.linear1.bias": torch.zeros(24)}
    safetensors.torch.save_file(weights, tmp_path / "other" / "model.safetensors", {"format": "pt"})
    for name, message in (
        ("bert", "bert holds a bert model; expected a CLAP, e.g. laion/larger_clap_music"),
        ("bare", "Cannot load a checkpoint from .*bare: "),
        ("other", "other lacks .* of the weights that ClapAudioModelWithProjection needs"),
    ):
        with pytest.raises(ConfigError, match=message) as caught:
            build_encoder("clap", {"pretrained_model": str(tmp_path / name)})
        assert "\n" not in str(caught.value)


class Evil:
    """Unpickled, it leaves a folder behind."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_checkpoint_is_refused_and_not_run(checkpoints, tmp_path, legacy):
    state = {f"module.{name}": value for name, value in laion._read(checkpoints / "unfused.pt").items()}
    path = tmp_path / "evil.pt"
    content = {"state_dict": state, "name": Evil(tmp_path / "was-here")}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ConfigError, match=r"evil.pt holds (posix|nt)\.mkdir, which is no tensor") as caught:
        build_encoder("clap", {"pretrained_model": str(path)})
    assert "\n" not in str(caught.value) and not (tmp_path / "was-here").exists()
    torch.load(path, weights_only=False)
    assert (tmp_path / "was-here").exists(), "it would have been run"


@pytest.mark.parametrize("stored", ["a state dict alone", "numpy 1", "before torch 1.6", "half precision"])
def test_checkpoints_of_all_ages_are_read(checkpoints, load, tmp_path, stored):
    path = tmp_path / "old.pt"
    state = laion._read(checkpoints / "unfused.pt")
    if stored == "a state dict alone":
        torch.save(state, path)
    elif stored == "numpy 1":
        with ZipFile(checkpoints / "unfused.pt") as source, ZipFile(path, "w", ZIP_STORED) as target:
            for name in source.namelist():
                content = source.read(name)
                if name.endswith("data.pkl"):
                    assert b"numpy._core.multiarray\nscalar" in content
                    content = content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
                target.writestr(name, content)
    elif stored == "before torch 1.6":
        torch.save({"state_dict": state, "lr": np.float64(1)}, path, _use_new_zipfile_serialization=False)
    else:
        torch.save({name: value.half() if value.is_floating_point() else value for name, value in state.items()}, path)
    found = encode(CLAPEncoder(pretrained_model=str(path)).eval(), sound(50_000))
    tolerance = 0.02 if stored == "half precision" else 1e-6
    assert deviation(found, encode(load("unfused.pt"), sound(50_000))) < tolerance


def test_numpy_scalars_become_numbers(checkpoints, tmp_path):
    """And nothing else of numpy is made: an array of objects could hold anything."""
    with torch.serialization.safe_globals(laion._NUMPY):
        group = torch.load(checkpoints / "unfused.pt", weights_only=True)["optimizer"]["param_groups"][0]
    assert group == {"lr": 1e-4, "weight_decay": float(np.float32(0.1)), "step": 3, "params": [0, 1]}
    assert {type(value) for value in group.values()} == {float, int, list}
    for content in (np.arange(3), np.array([print], dtype=object), np.datetime64("2020-01-01")):
        torch.save({"state_dict": {}, "extra": content}, tmp_path / "odd.pt")
        with pytest.raises(ConfigError, match="odd.pt"):
            build_encoder("clap", {"pretrained_model": str(tmp_path / "odd.pt")})


def broken(state: dict[str, torch.Tensor], how: str) -> object:
    audio = "audio_branch."
    if how == "list":
        return [1, 2]
    if how == "resnet":
        return {"conv1.weight": torch.zeros(3), "fc.bias": torch.zeros(2)}
    if how == "missing":
        return {name: value for name, value in state.items() if not name.startswith(f"{audio}norm.")}
    if how == "unknown":
        return {**state, f"{audio}absolute_pos_embed": torch.zeros(3)}
    if how == "shape":
        return {**state, f"{audio}norm.bias": torch.zeros(5)}
    if how == "projection":
        return {name: value for name, value in state.items() if not name.startswith("audio_projection.")}
    return {**state, f"{audio}logmel_extractor.melW": 2 * state[f"{audio}logmel_extractor.melW"]}


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("list", "lacks audio_branch.bn0.weight"),
        ("resnet", "lacks audio_branch.bn0.weight, audio_branch.patch_embed.proj.weight, .*expected a LAION CLAP"),
        ("missing", "lacks audio_branch.norm.weight, audio_branch.norm.bias"),
        ("unknown", "has not: audio_branch.absolute_pos_embed"),
        ("shape", "does not fit laion-clap's HTSAT: .*norm.bias"),
        ("projection", "lacks audio_projection.0.weight"),
        ("filters", "another spectrogram"),
    ],
)
def test_a_pt_of_something_else_says_what_is_wrong(checkpoints, tmp_path, how, message):
    path = tmp_path / "other.pt"
    torch.save(broken(laion._read(checkpoints / "unfused.pt"), how), path)
    with pytest.raises(ConfigError, match=f"other.pt .*{message}") as caught:
        build_encoder("clap", {"pretrained_model": str(path)})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_damaged_file_is_a_line(tmp_path, legacy):
    content = {"state_dict": {"module.a": torch.ones(3)}, "lr": np.float64(1), "list": [1, {"a": (1, 2)}]}
    torch.save(content, tmp_path / "whole.pt", _use_new_zipfile_serialization=not legacy)
    whole, path = (tmp_path / "whole.pt").read_bytes(), tmp_path / "torn.pt"
    cuts = [whole[: len(whole) * tenth // 10] for tenth in range(10)]
    flips = [whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :] for at in range(0, len(whole), 11)]
    for damaged in [b"", b"not a checkpoint", b"PK\x03\x04", *cuts, *flips]:
        path.write_bytes(damaged)
        with pytest.raises(ConfigError, match="torn.pt") as caught:  # or, if the flip is harmless, that it is no CLAP
            build_encoder("clap", {"pretrained_model": str(path)})
        assert "\n" not in str(caught.value)


def test_without_laion_clap_it_says_what_to_install(checkpoints, monkeypatch):
    for module in [name for name in sys.modules if name.startswith("featurize.encoders.laion.")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "torchlibrosa", None)
    monkeypatch.setitem(sys.modules, "torchlibrosa.stft", None)
    with pytest.raises(ConfigError, match="needs laion-clap, torchlibrosa and torchvision: .*torchlibrosa.*pip"):
        build_encoder("clap", {"pretrained_model": str(checkpoints / "unfused.pt")})


@pytest.mark.parametrize("name", ["unfused", "unfused.pt"])
def test_its_last_block_can_learn_alone(checkpoints, name):
    """It reaches to the end: the norm behind it and the projection belong to it."""
    encoder = CLAPEncoder(pretrained_model=str(checkpoints / name)).eval()
    blocks = encoder.ordered_blocks()
    encoder.requires_grad_(False)
    blocks[-1].requires_grad_(True)
    learn = {key.split(".")[0] for key, weight in encoder.named_parameters() if weight.requires_grad}
    assert len(blocks) > 1 and learn == {"branch", "projection"}
    batch = encoder.collate([encoder.prepare_waveform(sound(encoder.sample_rate_hz))])
    encoder(batch).pooled[:, 0].sum().backward()
    graded = {key for key, weight in encoder.named_parameters() if weight.grad is not None and weight.grad.any()}
    assert graded and all(encoder.get_parameter(key).requires_grad for key in graded)
    encoder.requires_grad_(True).zero_grad()
