"""YAML as plain values, from files that may mean harm.

Goal: whatever a file holds, reading it ends soon, and runs nothing. Tags that would make objects are refused by
PyYAML's SafeLoader. Aliases are counted as what they stand for, before anything is built of them: a few lines of
anchors can stand for billions of values (and a merge `<<` copies them), or for themselves.
"""

from __future__ import annotations

from typing import Any

import yaml

MAX_VALUES = 100_000  # a configuration has some hundred


def read_yaml(text: str) -> Any:
    """The value of a YAML document. Raises `yaml.YAMLError`, or `ValueError` on a date that is none."""
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _check_size(node)
        return loader.construct_document(node)
    except RecursionError as error:
        raise yaml.YAMLError("it is nested too deeply") from error
    finally:
        loader.dispose()


def _check_size(node: yaml.Node) -> None:
    waiting, count = [node], 0
    while waiting:
        value = waiting.pop()
        count += 1
        if isinstance(value, yaml.SequenceNode):
            waiting += value.value
        elif isinstance(value, yaml.MappingNode):
            waiting += [part for pair in value.value for part in pair]
        if count + len(waiting) > MAX_VALUES:
            raise yaml.YAMLError(f"with its aliases written out it has more than {MAX_VALUES:,} values")
