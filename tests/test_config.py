"""How the configuration is read: priority, mistakes and the way back to YAML."""

from __future__ import annotations

import pytest

from featurize.errors import ConfigError
from fusion.config import Config, dump_yaml, load_config, validated


@pytest.fixture
def write(tmp_path, monkeypatch):
    """We stand in an empty folder; `write(text)` puts a configuration there."""
    monkeypatch.chdir(tmp_path)

    def put(text: str | bytes, name: str = "config.yaml"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return put


# Priority


def test_without_a_file_all_is_default(write):
    assert load_config() == Config()


def test_the_file_overrides_defaults_and_set_overrides_the_file(write):
    path = write("training: {epochs: 7, patience: 3}\nmodel: {fusion: {hidden_dim: 11}}\n", "mine.yaml")
    config = load_config(path, ["training.epochs=9", "training.epochs=8", "model.fusion.dropout=0.25"])
    assert (config.training.epochs, config.training.patience, config.model.fusion.hidden_dim) == (8, 3, 11)
    assert config.model.fusion.dropout == 0.25 and config.split == Config().split


def test_config_yaml_of_this_folder_is_found_and_a_named_file_goes_before_it(write):
    write("training: {epochs: 7}")
    other = write("training: {patience: 2}", "other.yaml")
    assert load_config().training.epochs == 7
    assert load_config(other).training.epochs == Config().training.epochs


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "{}"])
def test_an_empty_file_is_all_default(write, text):
    assert load_config(write(text)) == Config()


def test_a_set_leaves_its_neighbours(write):
    write("model: {fusion: {features: {audio: clap}, hidden_dim: 11}}")
    fusion = load_config(None, ["model.fusion.features.text=lsa"]).model.fusion
    assert fusion.features == {"audio": "clap", "text": "lsa"} and fusion.hidden_dim == 11


# Values


@pytest.mark.parametrize(
    ("override", "value"), [("training.lr=3e-4", 3e-4), ("training.lr=1E-2", 1e-2), ("training.lr=0.5", 0.5)]
)
def test_numbers_as_people_write_them(write, override, value):
    assert load_config(None, [override]).training.lr == value
    key, _, text = override.partition("=")
    assert load_config(write(f"training: {{{key.partition('.')[2]}: {text}}}")).training.lr == value


def test_lists_nulls_and_equals_signs(write):
    overrides = ["training.seeds=[4, 5]", "model.fusion.slots=null", "model.targets=[{name: a=b}]", "split.name=x=y"]
    config = load_config(None, overrides)
    assert config.training.seeds == [4, 5] and config.model.fusion.slots is None
    assert config.model.targets[0].name == "a=b" and config.split.name == "x=y"


def test_a_value_that_is_not_yaml_is_a_text(write):
    assert load_config(None, ["split.name=[a"]).split.name == "[a"


@pytest.mark.parametrize("text", ["2024-13-45", "2024-02-30"])
def test_an_impossible_date_is_a_text_too(write, text):
    """PyYAML raises a bare ValueError here."""
    assert load_config(None, [f"split.name={text}"]).split.name == text


@pytest.mark.parametrize("text", ["12", "1e5", "nan", "yes", "2024-01-02"])
def test_a_text_may_look_like_something_else(write, text):
    """A column may be called 12; in quotes, as in a file, it is a text."""
    assert load_config(write(f"data: {{columns: {{group: '{text}'}}}}")).data.columns.group == text
    assert load_config(None, [f"data.columns.group='{text}'"]).data.columns.group == text


# Mistakes


@pytest.mark.parametrize(
    ("override", "match"),
    [
        ("trainign.lr=1", "unknown key 'trainign'; did you mean 'training'"),
        ("training.learnig=1", "unknown key 'training.learnig'; (did you mean|known here: epochs, )"),
        ("training.epoch=1", "unknown key 'training.epoch'; did you mean 'epochs'"),
        ("model.fusion.stratgy=late", "unknown key 'model.fusion.stratgy'; did you mean 'strategy'"),
        ("model.targets=[{name: a, knid: regression}]", r"unknown key 'model\.targets\.0\.knid'; did you mean 'kind'"),
        ("preprocessing.audio.zzz=1", "known here: sample_rate, duration, augmentations"),
        ("split.zzz.yyy=1", r"unknown key 'split\.zzz'"),
        ("training.epochs=many", "training.epochs is 'many': .*integer"),
        ("training.epochs=1.5", "training.epochs is 1.5"),
        ("training.epochs=0", "training.epochs is 0: .*greater than 0"),
        ("training.seeds=[]", r"training.seeds is \[\]"),
        ("training.lr=nan", "training.lr is nan: .*finite"),
        ("training.lr=.inf", "training.lr is inf: .*finite"),
        ("training.lr=1e999", "training.lr is inf: .*finite"),
        ("model.fusion.dropout=1", "model.fusion.dropout is 1: .*less than 1"),
        ("model.targets=[{name: a, kind: ordinal}]", r"model\.targets\.0\.kind is 'ordinal': .*'categorical'"),
        ("model.targets=[{name: ''}]", r"model\.targets\.0\.name is ''"),
        ("training=3", "training is 3"),
        ("training.seeds=[-1]", r"training\.seeds\.0 is -1: .*greater than or equal to 0"),
        ("training.seeds=[5000000000]", r"training\.seeds\.0 is 5000000000: .*less than 4294967296"),
        ("training.seeds=[1, 1]", r"training\.seeds is \[1, 1\]: .*each seed once"),
        ("model.fusion.dropout=1.5", "model.fusion.dropout is 1.5: .*less than 1"),
        ("training.batch_size=1e12", "training.batch_size is 1000000000000.0: .*less than or equal to 10000000"),
        ("training.epochs=1e12", "training.epochs is 1000000000000.0: .*less than or equal to 1000000"),
        ("training.bootstrap=1e12", "training.bootstrap is 1000000000000.0: .*less than or equal to 1000000"),
        ("model.fusion.hidden_dim=1e9", "model.fusion.hidden_dim is 1000000000.0: .*less than or equal to 65536"),
        ("preprocessing.audio.duration=.inf", "preprocessing.audio.duration is inf: .*finite"),
        ("training.seeds=[0x" + "f" * 9000 + "]", "training.seeds.0 is a number of thousands of digits"),
        ("training.lr=" + "9" * 9000, r"training.lr is '9{20,100}\.\.\.9+': "),
        ("training", "--set takes KEY=VALUE, e.g. training.lr=3e-4, not 'training'"),
        ("=3", "--set takes KEY=VALUE"),
    ],
)
def test_a_mistake_is_named_with_what_was_expected(write, override, match):
    with pytest.raises(ConfigError, match=match):
        load_config(None, [override])


def test_shares_must_leave_something_to_train_on(write):
    with pytest.raises(ConfigError, match=r"val 0\.5 and test 0\.5 leave nothing to train on"):
        load_config(None, ["split.val=0.5", "split.test=0.5"])
    assert load_config(None, ["split.val=0.5", "split.test=0.4"]).split.test == 0.4


def test_a_value_is_not_a_section(write):
    write("training: {lr: 0.1}")
    with pytest.raises(ConfigError, match=r"--set training\.lr\.max=1: lr is a value, not a section"):
        load_config(None, ["training.lr.max=1"])


def test_several_mistakes_are_named_together(write):
    path = write("training: {epochs: 0, patience: -1}\n")
    with pytest.raises(
        ConfigError, match=r"config\.yaml: training\.epochs is 0.*\n.*training\.patience is -1"
    ) as caught:
        load_config(path)
    assert "pydantic" not in str(caught.value)


@pytest.mark.parametrize("text", ["a: [1", "a: b: c", "\tx: 1", b"\xff\xfe\x00", "a: 2024-13-45"])
def test_what_is_not_yaml(write, text):
    with pytest.raises(ConfigError, match=r"config\.yaml is not YAML") as caught:
        load_config(write(text))
    assert "\n" not in str(caught.value)


def anchors(first: str, each: str) -> str:
    """Ten lines, the last of which stands for 10^9 times the first."""
    lines = [f"a0: &a0 {first}"]
    for level in range(1, 10):
        lines.append(f"a{level}: &a{level} {each % ', '.join([f'*a{level - 1}'] * 10)}")
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("!!python/object/apply:pathlib.Path.touch ['marker']", "could not determine a constructor for the tag"),
        ("training: !!python/name:os.system ''", "could not determine a constructor for the tag"),
        (anchors("[x]", "[%s]"), "more than 100,000 values"),
        (anchors("{x: 1}", "{<<: [%s]}"), "more than 100,000 values"),  # a merge copies what it names
        ("training: &self {lr: *self}", "more than 100,000 values"),
        ("[" * 3000 + "]" * 3000, "nested too deeply"),
    ],
)
def test_yaml_that_means_harm_ends_in_a_line(write, tmp_path, monkeypatch, text, reason):
    path = write(text)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=rf"config\.yaml is not YAML: .*{reason}") as caught:
        load_config(path)
    assert "\n" not in str(caught.value) and not (tmp_path / "marker").exists()


def test_anchors_may_save_typing(write):
    path = write("training: &loop {lr: 0.1}\nfinetuning: {<<: *loop, epochs: 2}\n")
    config = load_config(path)
    assert config.training.lr == config.finetuning.lr == 0.1 and config.finetuning.epochs == 2


@pytest.mark.parametrize(("text", "kind"), [("- a\n- b", "list"), ("just words", "str"), ("3", "int")])
def test_what_is_not_a_mapping(write, text, kind):
    with pytest.raises(ConfigError, match=f"holds a {kind}; a configuration is a mapping of sections"):
        load_config(write(text))


def test_a_number_as_a_key(write):
    with pytest.raises(ConfigError, match="3"):
        load_config(write("3: 4"))


def test_a_missing_file(write, tmp_path):
    with pytest.raises(ConfigError, match=r"Cannot read configuration .*nowhere\.yaml: No such file"):
        load_config(tmp_path / "nowhere.yaml")
    with pytest.raises(ConfigError, match=r"Cannot read configuration .*: Is a directory"):
        load_config(tmp_path)


# And back


def test_yaml_survives_a_round_trip(write):
    overrides = [
        "data.path=música/segments.csv",
        "training.lr=1e-7",
        "training.seeds=[3]",
        "model.targets=[{name: '2', kind: regression}, {name: mood, class_weights: {'no': 2.5}}]",
        "model.fusion.features={my.concept: lsa}",
        "model.audio_encoder.options={rates: [1e-5, 2], deep: {a: null}}",
        "split.name='null'",
    ]
    config = load_config(None, overrides)
    text = dump_yaml(config)
    assert "música" in text and config != Config()
    assert load_config(write(text)) == config
    assert dump_yaml(load_config()) == text


def test_the_defaults_are_valid_themselves():
    assert validated(Config().model_dump(mode="json"), "defaults") == Config()
