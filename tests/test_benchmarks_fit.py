"""The benchmarks of training run to the end and print both sides. How fast is no test's matter."""

from __future__ import annotations

import re

import pytest
from click.testing import CliRunner

from benchmarks.__main__ import ALL
from benchmarks.__main__ import main as all_of_them

RATIO = re.compile(r"ratio [\d.]+ \[[\d.]+, [\d.]+\] over 1 pairs")


def printed(command, *arguments: str) -> str:
    done = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_one_command_names_them_all():
    lines = printed(all_of_them).splitlines()
    assert [line.split()[0] for line in lines] == ALL and all(len(line.split()) > 3 for line in lines)


def test_loading_prints_both_sides():
    from benchmarks.loading import main

    assert RATIO.search(printed(main, "--segments", "50", "--repetitions", "1", "--same-process"))


@pytest.mark.filterwarnings("ignore")  # Lightning warns of few batches and few workers
def test_fit_and_ablate_print_every_side():
    pytest.importorskip("lightning")
    from benchmarks import ablate, fit

    few = ("--segments", "80", "--epochs", "1", "--repetitions", "1")
    output = printed(fit.main, *few, "--seeds", "2", "--loss-epochs", "1")
    assert len(RATIO.findall(output)) == 6 and len(re.findall(r"fit minus this [+-]\d", output)) == 2
    output = printed(ablate.main, *few, "--workers", "0")
    assert RATIO.search(output) and re.search(r"ablate takes \d+ times that", output)
