"""Fine-tuning killed at any moment, and run again, ends where it would have ended."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from safetensors.numpy import load_file

from tests.finetuning_project import make_project

KILLS = 3
EPOCHS = 6


def finetune_in_place(folder: Path) -> None:
    """In a process of its own, and in that folder; every epoch is saved."""
    os.chdir(folder)
    from featurize.project import open_source_of
    from fusion import checkpoint
    from fusion.config import load_config
    from fusion.finetune import finetune
    from fusion.load_run import load_run
    from stores import open_store

    checkpoint.SAVE_EVERY_SECONDS = 0.0
    config, store = (
        load_config(overrides=[f"finetuning.epochs={EPOCHS}", "finetuning.patience=9"]),
        open_store("features.zarr"),
    )
    finetune(store, open_source_of(store, Path("features.zarr"), config), load_run(Path("late")), config, name="tuned")


def test_a_killed_fine_tuning_goes_on_and_ends_the_same(demo_data, tmp_path):
    whole = make_project(tmp_path / "whole", demo_data)
    killed = shutil.copytree(whole, tmp_path / "killed")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.test_finetune_kill"])
    never = context.Process(target=finetune_in_place, args=(whole,))
    never.start()
    never.join()
    assert never.exitcode == 0

    moments, died = random.Random(0), 0
    file = killed / "runs" / ".tuned.partial" / "checkpoints" / "model.pt"

    def saved_at() -> int:
        return file.stat().st_mtime_ns if file.is_file() else 0

    while True:
        before = saved_at()
        process = context.Process(target=finetune_in_place, args=(killed,))
        process.start()
        if died < KILLS:
            while process.is_alive() and saved_at() == before:  # until it has got further than the one before it
                time.sleep(0.002)
            process.join(moments.uniform(0, 0.1))
            os.kill(process.pid, signal.SIGKILL)
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        died += 1
    assert died > 0

    histories = [pq.read_table(folder / "runs/tuned/history.parquet").to_pydict() for folder in (whole, killed)]
    assert histories[0]["epoch"] == histories[1]["epoch"] == list(range(EPOCHS + 1))
    for column in ("train_loss", "val_loss", "gradient_norm.audio"):
        expected, found = (np.array(history[column], dtype=float) for history in histories)
        np.testing.assert_allclose(found, expected, rtol=1e-4)
    for file in ("model.safetensors", "encoders/audio/model.safetensors", "encoders/text/model.safetensors"):
        expected, found = (load_file(folder / "runs" / "tuned" / file) for folder in (whole, killed))
        for name, weights in expected.items():
            np.testing.assert_allclose(found[name], weights, rtol=1e-4, atol=1e-5, err_msg=name)
