"""The JSON Schema of `cli config schema` agrees with the program: what one takes or refuses, the other does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from fusion.config_file import commented_yaml, json_schema

jsonschema = pytest.importorskip("jsonschema", reason="pip install -e '.[test]' brings it")

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        commented_yaml(),
        "data: {timecode_rate: 25}",
        "model: {targets: [{name: mood, class_weights: {happy: 2}}]}",
        "finetuning: {lora: {audio: 4}, slots: {audio: {lr: 0.1}}}",
    ],
)
def test_the_schema_takes_what_the_program_takes(text):
    jsonschema.validate(yaml.safe_load(text), json_schema())


@pytest.mark.parametrize("text", ["trainign: {lr: 1}", "training: {lr: -1}", "split: {method: mixed}", "training: 3"])
def test_the_schema_refuses_what_the_program_refuses(text):
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(yaml.safe_load(text), json_schema())


def test_the_schema_takes_every_configuration_in_documents_and_examples():
    snippets = [path.read_text("utf-8") for path in (ROOT / "examples").glob("*.yaml")]
    for document in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]:
        snippets += re.findall(r"```yaml\n(.*?)```", document.read_text("utf-8"), re.DOTALL)
    assert len(snippets) > 2
    for snippet in snippets:
        jsonschema.validate(yaml.safe_load(snippet), json_schema())
