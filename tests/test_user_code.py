"""Code of a user's own: imported when the user names it, and never because a file does."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

import featurize
import fusion
from featurize.encoders import check_encoder
from featurize.encoders.base import Encoded, TextEncoder, stack_vectors
from featurize.errors import CodeNotAllowed, ConfigError
from fusion.load_run import load_run
from fusion.modules.base import Fused, MultimodalFusion, SlotProjections
from fusion.report_parts import PLAIN
from stores import RecordMismatch, open_store
from tests.test_extend import CONFIG, ROOT
from tests.unrendered import unrendered_pictures

ENCODER = """\
import numpy as np
from featurize.encoders.base import Encoded, TextEncoder, stack_vectors

class Lengths(TextEncoder):
    name = "lengths"
    libraries = ("numpy",)

    def __init__(self, scale=1.0):
        super().__init__()
        self.scale, self.width, self.settings = scale, 2, {"scale": scale}

    def prepare(self, raw):
        return np.array([len(raw.text), raw.text.count(" ")], np.float32) * self.scale

    collate = staticmethod(stack_vectors)

    def forward(self, batch):
        return Encoded(batch["vectors"])
"""
FUSION = """\
from fusion.modules.base import Fused, MultimodalFusion, SlotProjections

class Sum(MultimodalFusion):
    name = "sum"

    def __init__(self, widths, hidden_dim=128, dropout=0.3):
        super().__init__(widths, hidden_dim, dropout)
        self.project = SlotProjections(widths, hidden_dim, dropout)

    def fuse(self, features, present):
        tokens = self.project(features, present)
        return Fused(tokens.sum(dim=1), tokens)
"""
TRAP = "from pathlib import Path\nPath('sprung').touch()\n"


pytestmark = pytest.mark.usefixtures("nothing_named", "unrendered")


def prepare(folder: Path) -> None:
    """As its user does, in a process of its own."""
    os.chdir(folder)
    with unrendered_pictures():
        featurize.ingest()
        featurize.featurize("features.zarr", "my_encoder.py:Lengths", workers=0)
        fusion.fit("features.zarr", fusion="my_fusion.py:Sum", baselines=False, report=PLAIN)


@pytest.fixture(scope="module")
def prepared(demo_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a store, a feature of one's own encoder, and a run of one's own fusion on it."""
    folder = tmp_path_factory.mktemp("prepared")
    (folder / "config.yaml").write_text(CONFIG.replace("my-songs", str(demo_data)), "utf-8")
    (folder / "my_encoder.py").write_text(ENCODER, "utf-8")
    (folder / "my_fusion.py").write_text(FUSION, "utf-8")
    process = multiprocessing.get_context("forkserver").Process(target=prepare, args=(folder,))
    process.start()  # in this one nothing is to be known of them
    process.join()
    assert process.exitcode == 0
    return folder


@pytest.fixture
def store(project: Path, prepared: Path) -> Path:
    shutil.copytree(prepared, project, dirs_exist_ok=True)
    return Path("features.zarr")


@pytest.fixture
def run(store: Path) -> Path:
    return Path("runs/sum")


def forget() -> None:
    import featurize.user_code as registry

    registry._allowed.clear()
    registry._classes.clear()


def rewrite(path: Path, change) -> None:
    """Change what the metadata of a file of weights say."""
    with safe_open(path, "numpy") as file:
        facts = json.loads(file.metadata()["triad_fusion"])
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(facts)
    save_file(arrays, path, metadata={"triad_fusion": json.dumps(facts)})


def test_the_record_says_whose_code_it_was_and_a_changed_file_is_another(store, run_cli):
    named = ("featurize", "--encoder", "my_encoder.py:Lengths")
    feature = open_store(store)["text/lengths"]
    assert feature.record["class_name"] == "Lengths" and feature.record["parameters"] == {"scale": 1.0}
    assert feature.record["code"]["module"] == "my_encoder" and len(feature.record["code"]["sha256"]) == 64
    assert feature.present.sum() > 30 and feature.vectors[feature.present].all()
    assert "0 encoded" in run_cli("featurize", "--encoder", "my_encoder:Lengths").output
    Path("my_encoder.py").write_text(ENCODER.replace("* self.scale", "* self.scale + 1"), "utf-8")
    forget()
    del sys.modules["my_encoder"]
    assert "code.sha256" in run_cli(*named, code=2).output


def test_a_run_of_ones_own_code_asks_for_it_by_name(run, run_cli):
    allowed = ("--allow-code", "my_fusion.py")
    for command in (
        ("evaluate", "sum"),
        ("predict", "sum", "features.zarr"),
        ("export", "sum", "--onnx", "sum.onnx"),
        ("finetune", "--from", "sum"),
    ):
        refused = run_cli(*command, code=2).output
        assert "--allow-code my_fusion" in refused and "nothing of it was run" in refused
        assert len(refused.strip().splitlines()) == 2
    run_cli("predict", "sum", "features.zarr", *allowed)
    forget()
    raw = ("predict", "sum", json.loads((run / "environment.json").read_text())["store"], "--out", "a.csv")
    run_cli(*raw, *allowed)


def test_raw_segments_pass_through_ones_own_encoder_when_it_is_named(run, demo_data, run_cli):
    command = ("predict", "sum", str(demo_data), "--out", "raw.csv", "--allow-code", "my_fusion.py")
    assert "--allow-code my_encoder" in run_cli(*command, code=2).output
    run_cli(*command, "--allow-code", "my_encoder")
    run_cli("predict", "sum", "features.zarr", "--out", "stored.csv", "--allow-code", "my_fusion.py")
    assert Path("raw.csv").read_text() == Path("stored.csv").read_text()


def test_a_changed_fusion_does_not_pass_for_the_one_that_was_trained(run, run_cli):
    Path("my_fusion.py").write_text(FUSION.replace("tokens.sum(dim=1)", "tokens.mean(dim=1)"), "utf-8")
    output = run_cli("predict", "sum", "features.zarr", "--allow-code", "my_fusion.py", code=2).output
    assert "is not what it was in training" in output


def test_no_file_of_a_stranger_leads_to_an_import(run, demo_data, run_cli):
    """Weights, records and configurations may name what they like; the trap is a module that Python would find."""
    Path("evil.py").write_text(TRAP, "utf-8")
    sys.path.append(str(Path.cwd()))
    Path("evil.yaml").write_text("model: {fusion: {strategy: 'evil:Thing'}}", "utf-8")
    refused = [run_cli("fit", "--config", "evil.yaml", code=2)]
    refused.append(run_cli("fit", "--set", "model.fusion.strategy=evil:Thing", code=2))
    run_cli("inspect", str(demo_data), "--set", "model.text_encoder.type=evil:Thing")
    rewrite(run / "model.safetensors", lambda facts: facts["fusion"].update(strategy="evil:Thing"))
    refused += [run_cli("evaluate", "sum", code=2), run_cli("predict", "sum", str(demo_data), code=2)]
    tree = open_store("features.zarr").tree
    for fields in ({"code": {"module": "evil", "sha256": "0"}}, {"code": None, "encoder": "evil:Lengths"}):
        path = "features/text/lengths"
        attributes = tree.attributes(path)
        tree.set_attributes(path, {**attributes, "record": {**attributes["record"], **fields}})
        from featurize.rebuild import rebuild_encoder

        with pytest.raises(ConfigError, match="evil"):
            rebuild_encoder("text/lengths", open_store("features.zarr")["text/lengths"].record)
    for result in refused:
        assert "--allow-code evil" in result.output
    with pytest.raises(CodeNotAllowed, match="nothing of it was run"):
        load_run(run)
    assert not Path("sprung").exists() and "evil" not in sys.modules
    run_cli("fit", "--config", "evil.yaml", "--allow-code", "evil.py", code=2)
    assert Path("sprung").exists()  # the trap works, once its user wants it


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ("nowhere.py:Thing", "There is no file nowhere.py"),
        ("nowhere:Thing", "No module named 'nowhere'"),
        ("my_encoder.py:Nothing", "my_encoder has no Nothing; its classes are Lengths"),
        ("my_encoder.py:np", "is a module; an encoder is a subclass of"),
        ("my_fusion.py:Sum", "an encoder is a subclass of featurize.encoders.base.Encoder"),
        ("json.py:JSONDecoder", "json is another module's name"),
        ("my_broken.py:Thing", "ZeroDivisionError: division by zero"),
        ("my_encoder.py:Lengths --option size=3", "Known: scale"),
    ],
)
def test_what_cannot_be_used_is_one_line(store, named, said, run_cli):
    Path("json.py").write_text("", "utf-8")
    Path("my_broken.py").write_text("1 / 0\n", "utf-8")
    output = run_cli("featurize", "--encoder", *named.split(), "--workers", "0", code=2).output
    assert said in output and "Traceback" not in output


class Base(TextEncoder):
    name, width = "base", 2

    def __init__(self, scale: float = 1.0):
        super().__init__()
        self.settings = {"scale": scale}

    def prepare(self, raw):
        return np.array([len(raw.text), raw.text.count(" ")], np.float32)

    collate = staticmethod(stack_vectors)

    def forward(self, batch):
        return Encoded(batch["vectors"])


class NoName(Base):
    name = ""


class NoSettings(Base):
    def __init__(self):
        super().__init__()
        del self.settings


class Narrow(Base):
    def forward(self, batch):
        return Encoded(batch["vectors"][:, :1])


class Bare(Base):
    def forward(self, batch):
        return batch["vectors"]


class Nan(Base):
    def forward(self, batch):
        return Encoded(batch["vectors"] / 0 * 0)


class OfItsBatch(Base):
    def forward(self, batch):
        return Encoded(batch["vectors"] - batch["vectors"].mean(dim=0))


class Chance(Base):
    def prepare(self, raw):
        return np.random.default_rng().random(2, np.float32)


class Forgetful(Base):
    def __init__(self, scale: float = 1.0):
        super().__init__()
        self.settings = {"scale": scale + 1}


@pytest.mark.parametrize(
    ("cls", "said"),
    [
        (NoName, "has no name"),
        (NoSettings, "has no settings"),
        (Narrow, r"shape \(\d+, 1\); expected \(B, 2\)"),
        (Bare, "returned a Tensor; expected Encoded"),
        (Nan, "NaN or infinity"),
        (OfItsBatch, "alone, or in another order"),
        (Chance, "alone, or in another order|another item"),
        (Forgetful, "it has other parameters"),
    ],
)
def test_an_encoder_that_breaks_its_contract_is_told_so(cls, said):
    with pytest.raises(ConfigError, match=said):
        check_encoder(cls)


def test_an_encoder_that_keeps_it():
    found = check_encoder(Base)
    assert found.width == 2 and found.deviation == 0 and "tests.test_user_code:Base" in repr(found)


def test_a_class_and_an_encoder_from_python(store):
    done = featurize.featurize(store, Base)
    assert done.feature.name == "text/base" and "present" in repr(done) and "<table>" in done._repr_html_()
    with pytest.raises(RecordMismatch, match=r"parameters\.scale"):
        featurize.featurize(store, Base(scale=2.0))
    assert featurize.featurize(store, Base(scale=2.0), save_as="twice").extraction.encoded > 0
    with pytest.raises(ConfigError, match=r"expected \(B, 2\)"):
        featurize.featurize(store, Narrow, save_as="narrow")

    class Local(Base):
        heavy_preparation = True

    with pytest.raises(ConfigError, match="other processes cannot find it"):
        featurize.featurize(store, Local, workers=1)


class Plain(MultimodalFusion):
    name = "plain"

    def __init__(self, widths, hidden_dim=128, dropout=0.3):
        super().__init__(widths, hidden_dim, dropout)
        self.project = SlotProjections(widths, hidden_dim, dropout)

    def fuse(self, features, present):
        tokens = self.project(features, present)
        return Fused(tokens.sum(dim=1), tokens)


class Reads(Plain):
    def fuse(self, features, present):
        tokens = self.project(features, present)
        seen = sum(vectors.sum(dim=1, keepdim=True) for vectors in features.values())
        return Fused(tokens.sum(dim=1) + seen.nan_to_num(), tokens)


class Bares(Plain):
    def fuse(self, features, present):
        return self.project(features, present).sum(dim=1)


class Mixes(Plain):
    def fuse(self, features, present):
        fused = super().fuse(features, present)
        return Fused(fused.vector - fused.vector.mean(dim=0), fused.embeddings)


class Weighs(Plain):
    def fuse(self, features, present):
        fused = super().fuse(features, present)
        return Fused(fused.vector, fused.embeddings, present.float() * 0 + 1)


class Crashes(Plain):
    def fuse(self, features, present):
        return features["text"] @ features["audio"]


class Nameless(Plain):
    name = "a/b"


@pytest.mark.parametrize(
    ("cls", "said"),
    [
        (Reads, "of a slot that is not present reach the output"),
        (Bares, "returned a Tensor; expected Fused"),
        (Mixes, "a segment alone has another vector|embeddings|vector"),
        (Weighs, "zero where a slot is missing"),
        (Crashes, r"fails in fuse\(\), line \d+ of .*RuntimeError"),
        (Nameless, "no name that a run could bear"),
    ],
)
def test_a_fusion_that_breaks_its_contract_is_told_so(cls, said):
    with pytest.raises(ConfigError, match=said):
        fusion.check_fusion(cls)
    fusion.check_fusion(Plain)


def test_classes_are_fitted_and_ablated_from_python(store, run_cli):
    run_cli("featurize", "--encoder", "lsa")
    run_cli("featurize", "--encoder", "midi_stats", "--workers", "0")
    run = fusion.fit(store, fusion=Plain, slots="text,midi", runs="runs")
    assert run.folder.name == "plain" and run.report.is_file() and run.predictions.num_rows > 0
    assert "mood" in repr(run) and "majority" in run._repr_html_()
    assert fusion.predict(run, store).num_rows == open_store(store).n_segments
    found = fusion.ablate(store, fusions=["late", Plain], subsets=[("text",)])
    assert found.n_run == 2 + 3 and "tests.test_user_code:Plain" in repr(found)
    assert fusion.ablate(store, fusions=["late", Plain], subsets="text").n_run == 0
    with pytest.raises(ConfigError, match="of a slot that is not present"):
        fusion.fit(store, fusion=Reads)


def test_a_name_that_two_classes_bear_stays_apart_and_ours_keep_theirs(store, run_cli):
    """A package cannot take the place of what comes with triad-fusion; a class of ours is called as ever."""
    from featurize.encoders import encoder_class
    from featurize.encoders.midi_stats import MIDIStatsEncoder
    from fusion.modules import LateFusion

    assert encoder_class("midi_stats") is MIDIStatsEncoder
    done = featurize.featurize(store, MIDIStatsEncoder)
    assert "code" not in done.feature.record
    assert "0 encoded" in run_cli("featurize", "--encoder", "midi_stats", "--workers", "0").output
    assert fusion.fit(store, fusion=LateFusion, baselines=False).metrics["fusion"] == "late"


def test_the_packages_import_no_torch_and_name_what_they_have():
    code = (
        "import sys, stores, featurize, fusion; assert not {'torch', 'numpy', 'zarr'} & set(sys.modules); "
        "assert {'fit', 'ablate', 'predict'} <= set(dir(fusion)) and 'ingest' in dir(featurize)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    functions = {name: getattr(fusion, name) for name in fusion.__all__}
    functions |= {name: getattr(featurize, name) for name in featurize.__all__}
    assert all(callable(function) for function in functions.values())  # and no module of that name in their place
    assert not {f"fusion.{name}" for name in fusion.__all__} & set(sys.modules)
    assert not {f"featurize.{name}" for name in featurize.__all__} & set(sys.modules)
