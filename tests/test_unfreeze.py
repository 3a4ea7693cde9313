"""Which weights of an encoder learn, and that the others stay: bit by bit, running statistics too."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import transformers

from featurize.encoders import build_encoder
from featurize.errors import ConfigError
from fusion import unfreeze
from fusion.config import FinetuningConfig
from fusion.end_to_end import EndToEnd
from fusion.unfreeze import Unfrozen, can_learn
from tests.test_deberta import KINDS, new_model, new_tokenizer
from tests.test_encoders import demo_raws

SMALL = {
    "mel_cnn": {"hidden_dim": 8, "channels": [4, 6, 8], "n_mels": 16},
    "piano_roll": {"hidden_dim": 8, "channels": [4, 6, 8]},
    "event": {"hidden_dim": 16, "n_layers": 3, "n_heads": 2},
    "music_transformer": {"hidden_dim": 16, "n_layers": 3, "n_heads": 2},
    "deberta": {},
    "wav2vec2": {},
}
WAV2VEC2 = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "conv_dim": (8, 8),
    "conv_kernel": (10, 8),
    "conv_stride": (10, 8),
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
}
TRANSFORMERS = ("event", "music_transformer", "deberta", "wav2vec2")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    root = tmp_path_factory.mktemp("checkpoints")
    family, config, tokenizer = KINDS["bert"]
    new_model(family, {**config, "num_hidden_layers": 3}).save_pretrained(root / "deberta")
    new_tokenizer(tokenizer).save_pretrained(root / "deberta")
    torch.manual_seed(0)
    transformers.Wav2Vec2Model(transformers.Wav2Vec2Config(**WAV2VEC2)).save_pretrained(root / "wav2vec2")
    return root


@pytest.fixture
def new(checkpoints):
    def build(name: str):
        torch.manual_seed(0)
        options = dict(SMALL[name])
        if (checkpoints / name).is_dir():
            options["pretrained_model"] = str(checkpoints / name)
        return build_encoder(name, options)

    return build


@pytest.fixture(scope="module")
def raws(demo_data):
    return {modality: demo_raws(demo_data, modality, most=3) for modality in ("text", "audio", "midi")}


class OneSlot(torch.nn.Module):
    """A head that is a sum, so that only the encoder learns."""

    slots = ("only",)

    def with_embeddings(self, features, present):
        return [features["only"].square().sum(dim=1, keepdim=True)], None, features["only"][:, None]

    def slot_parameters(self):
        return {"only": []}


def model_of(encoder, config: FinetuningConfig) -> tuple[EndToEnd, Unfrozen]:
    unfrozen = Unfrozen("only", encoder, config)
    return EndToEnd(OneSlot(), {"only": encoder}), unfrozen


def learn(model: EndToEnd, encoder, raws, steps: int = 2) -> dict[str, torch.Tensor]:
    """Gradients of the last step, by name."""
    items = [encoder.prepare(raw) for raw in raws[encoder.modality]]
    optimizer = torch.optim.SGD([w for w in model.parameters() if w.requires_grad], lr=1e-2)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        torch.manual_seed(0)
        (logits,), _ = model({"only": items}, torch.ones(len(items), 1, dtype=torch.bool))
        logits.sum().backward()
        optimizer.step()
    return {name: weight.grad for name, weight in encoder.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("name", SMALL)
def test_of_the_last_blocks_the_weights_move_and_nothing_else_does(new, raws, name):
    encoder = new(name)
    assert len(encoder.ordered_blocks()) == 3
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    model, unfrozen = model_of(encoder, FinetuningConfig(last_layers=1))
    last = {id(weight) for weight in encoder.ordered_blocks()[-1].parameters()}
    assert unfrozen.n_weights == sum(w.numel() for w in encoder.parameters() if id(w) in last) > 0
    learn(model, encoder, raws)
    moved = {key for key, value in encoder.state_dict().items() if not torch.equal(value, before[key])}
    free = {key for key, weight in encoder.named_parameters() if id(weight) in last}
    statistics = {key for key in moved if "running" in key or "n_batches" in key}
    assert moved - statistics <= free and moved & free
    assert all(any(key.rpartition(".")[0] in name for name in free) for key in statistics)


@pytest.mark.parametrize("name", SMALL)
def test_without_a_word_all_of_it_learns(new, raws, name):
    encoder = new(name)
    model, unfrozen = model_of(encoder, FinetuningConfig())
    assert can_learn(encoder) and unfrozen.n_weights == sum(weight.numel() for weight in encoder.parameters())
    assert len(learn(model, encoder, raws)) > 5


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_low_rank_updates_begin_as_nothing_and_are_merged_in_the_end(new, raws, name):
    pytest.importorskip("peft")
    encoder, untouched = new(name).eval(), new(name).eval()
    items = [encoder.prepare(raw) for raw in raws[encoder.modality]]
    model, unfrozen = model_of(encoder, FinetuningConfig(lora=2))
    with torch.no_grad():
        expected = untouched(untouched.collate(items)).pooled
        torch.testing.assert_close(model.eval().encoders.encoders[0](encoder.collate(items)).pooled, expected)
    assert 0 < unfrozen.n_weights < sum(weight.numel() for weight in untouched.parameters()) / 4
    learn(model, encoder, raws)
    with torch.no_grad():
        learned = model.eval().encoders.encoders[0](encoder.collate(items)).pooled
        unfrozen.merge()
        merged = encoder(encoder.collate(items)).pooled
    torch.testing.assert_close(merged, learned, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(merged, expected, rtol=1e-4, atol=1e-5)
    before, after = untouched.state_dict(), encoder.state_dict()
    assert before.keys() == after.keys()
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert moved and all(unfreeze.ATTENTION.search(key) and key.endswith("weight") for key in moved)


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_recomputed_activations_give_the_same_gradients(new, raws, name):
    kept, recomputed = new(name), new(name)
    model, _ = model_of(kept, FinetuningConfig())
    other, unfrozen = model_of(recomputed, FinetuningConfig(gradient_checkpointing=True))
    assert unfrozen.recomputes
    expected, found = learn(model, kept, raws, steps=1), learn(other, recomputed, raws, steps=1)
    assert expected.keys() == found.keys()
    for key, gradient in expected.items():
        torch.testing.assert_close(found[key], gradient, rtol=1e-4, atol=1e-5)


def test_a_network_that_cannot_recompute_says_so(new):
    _, unfrozen = model_of(new("mel_cnn"), FinetuningConfig(gradient_checkpointing=True))
    assert not unfrozen.recomputes


def test_what_cannot_be_unfrozen_so_is_named(new, monkeypatch):
    for config, message in (
        ({"last_layers": {"only": 4}}, "last_layers is 4, but encoder event has 3 blocks"),
        ({"last_layers": 1, "lora": 2}, "Slot only has both last_layers and lora"),
    ):
        with pytest.raises(ConfigError, match=message):
            Unfrozen("only", new("event"), FinetuningConfig(**config))
    with pytest.raises(ConfigError, match="mel_cnn has no attention that LoRA could update"):
        Unfrozen("only", new("mel_cnn"), FinetuningConfig(lora=2))
    monkeypatch.setattr(unfreeze, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"LoRA needs peft: pip install 'triad-fusion\[finetune\]'"):
        Unfrozen("only", new("event"), FinetuningConfig(lora=2))
    Unfrozen("only", new("event"), FinetuningConfig(lora={"other": 2}))


def test_a_precision_that_an_encoder_does_not_have_is_named():
    encoder = SimpleNamespace(precisions=("fp32",), name="toy", precision="fp32")
    with pytest.raises(ConfigError, match="encoder toy computes in fp32, not in bf16"):
        EndToEnd(OneSlot(), {"only": encoder}, precision="bf16")  # type: ignore[dict-item]


def test_bfloat16_is_for_training_alone(new):
    encoder = new("event")
    model = EndToEnd(OneSlot(), {"only": encoder}, precision="bf16")
    assert model.train().encoders.encoders[0].precision == "bf16" and model.eval() and encoder.precision == "fp32"
