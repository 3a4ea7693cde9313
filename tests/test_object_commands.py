"""The commands on object storage, as a user types them: stores and raw media there end as on a disk, byte by byte."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
from pathlib import Path

import pytest

from featurize.config import DataConfig
from featurize.extract import extract
from featurize.segments import UnreadableInput
from featurize.sources import open_source
from featurize.workers import take_environment
from stores import open_store
from stores.backends import new_tree
from stores.feature import Status
from stores.remote import RemotePath, location
from stores.verify import verify
from tests.object_storage import answers, every_object, failing
from tests.test_ingest import write_split_parquet
from tests.test_kill import every_file
from tests.toys import ToyEncoder, ToySource, toy_contents, toy_feature

pytestmark = pytest.mark.usefixtures("unrendered")

ENCODERS = ("lsa", "midi_stats")


def upload(folder: Path, to: RemotePath) -> None:
    files = every_file(folder)
    to.objects.many(lambda name: to.objects.put((to / name).key, files[name]), files)


def same(path: RemotePath, folder: Path) -> bool:
    """But for where the raw data is said to be."""
    here, there = every_file(folder), every_object(path)
    assert here.keys() == there.keys()
    return all(content == there[name] for name, content in here.items() if name != "zarr.json")


def test_from_raw_songs_to_a_report_and_back_from_damage(project, demo_data, bucket, run_cli):
    """Store and songs in the bucket; beside it the same on the disk."""
    upload(demo_data, bucket / "songs")
    path = bucket / "features.zarr"
    store = ["--store", str(path)]
    assert f"Wrote {path}." in run_cli("ingest", str(bucket / "songs/"), *store).output
    run_cli("ingest", demo_data)
    for encoder in ENCODERS:
        for where in ([], store):
            run_cli("featurize", "--encoder", encoder, "--workers", "0", *where)
        assert same(path, project / "features.zarr")
        assert " 0 encoded" in run_cli("featurize", "--encoder", encoder, "--workers", "0", *store).output
    assert "every chunk is there" in run_cli("verify", *store).output
    assert "text/lsa" in run_cli("inspect", str(path)).output

    whole = every_object(path)
    victim = (path / "features/midi/midi_stats/vectors/c/0/0").key
    content = bytearray(bucket.objects.get(victim).content)
    content[100] ^= 1
    bucket.objects.put(victim, bytes(content))
    told = run_cli("verify", *store, code=1).output
    assert "midi/midi_stats: vectors, chunk 0" in told and "cli featurize --encoder midi_stats --repair" in told
    assert "damaged" in run_cli("fit", *store, "--target", "mood", code=2).output
    run_cli("featurize", "--encoder", "midi_stats", "--repair", "--workers", "0", *store)
    assert every_object(path) == whole

    fit = ["fit", "--target", "mood", "--seeds", "1", "--set", "training.epochs=2", "--no-baselines"]
    for name, where in (("disk", []), ("s3", [*store, "--stream"])):
        run_cli(*fit, "--name", name, *where)
    weights = [(project / "runs" / run / "model.safetensors").read_bytes() for run in ("disk", "s3")]
    assert weights[0] == weights[1]
    run_cli("predict", "s3", str(path), "--out", "predictions.csv", *store)
    secrets = [file for file in project.rglob("*") if file.is_file() and b"secret-of-the-test" in file.read_bytes()]
    assert not secrets and not any(b"secret-of-the-test" in content for content in every_object(bucket).values())


def test_a_store_grows_and_is_copied_both_ways(project, demo_data, bucket, run_cli):
    lines = (demo_data / "segments.csv").read_text("utf-8").splitlines(keepends=True)
    upload(demo_data, bucket / "songs")
    bucket.objects.put("songs/segments.csv", "".join(lines[:25]).encode())
    store = ["--store", str(bucket / "features.zarr")]
    run_cli("ingest", str(bucket / "songs"), *store)
    run_cli("featurize", "--encoder", "midi_stats", "--workers", "0", *store)
    bucket.objects.put("songs/segments.csv", "".join(lines).encode())
    assert "has grown" in run_cli("ingest", str(bucket / "songs"), *store).output
    assert " 0 unchanged" not in run_cli("featurize", "--encoder", "midi_stats", "--workers", "0", *store).output
    assert set(every_object(bucket / "features.zarr")) and not list(bucket.glob("*.replacing"))
    run_cli("convert", str(bucket / "features.zarr"), "copy.zarr")
    assert every_file(project / "copy.zarr") == every_object(bucket / "features.zarr")
    run_cli("convert", "copy.zarr", str(bucket / "again.zarr"))
    assert every_object(bucket / "again.zarr") == every_object(bucket / "features.zarr")


def test_a_split_parquet_is_read_where_it_is(project, demo_data, bucket, tmp_path, run_cli):
    write_split_parquet(demo_data, tmp_path / "parquet")
    upload(tmp_path / "parquet", bucket / "parquet")
    for data, store in ((tmp_path / "parquet", "disk.zarr"), (bucket / "parquet", "s3.zarr")):
        run_cli("ingest", str(data), "--store", store)
        run_cli("featurize", "--encoder", "midi_stats", "--workers", "0", "--store", store)
        run_cli("featurize", "--encoder", "lsa", "--workers", "0", "--store", store)
    disk, s3 = every_file(project / "disk.zarr"), every_file(project / "s3.zarr")
    del disk["zarr.json"], s3["zarr.json"]
    assert disk == s3


def test_storage_that_fails_fails_no_row(project, demo_data, bucket, storage, run_cli, tmp_path, monkeypatch):
    """Songs that cannot be had now are not songs that cannot be read; the same command goes on."""
    upload(demo_data, bucket / "songs")
    run_cli("ingest", str(bucket / "songs"))
    run_cli("ingest", demo_data, "--store", "disk.zarr")
    run_cli("featurize", "--encoder", "midi_stats", "--workers", "0", "--store", "disk.zarr")
    monkeypatch.setenv("TRIAD_CACHE", str(tmp_path / "empty"))  # `ingest` has left copies in this process
    refuse = answers("403 Forbidden", "AccessDenied")
    songs = iter(range(3))
    with failing(storage, lambda method, path: refuse if path.endswith(".mid") and next(songs, None) is None else None):
        told = run_cli("featurize", "--encoder", "midi_stats", "--workers", "0", code=2).output
    assert told.count("\n") == 1 and "access denied (AccessDenied)" in told
    assert not (open_store("features.zarr")["midi/midi_stats"].status == Status.FAILED).any()
    run_cli("featurize", "--encoder", "midi_stats", "--workers", "2")
    disk, s3 = every_file(project / "disk.zarr"), every_file(project / "features.zarr")
    del disk["zarr.json"], s3["zarr.json"]
    assert disk == s3


def test_paths_stay_inside_the_root(demo_data, bucket):
    upload(demo_data, bucket / "songs")
    bucket.objects.put("secret.wav", b"")
    table = "segment_id,group,audio_path\na,g,../secret.wav\nb,g,/secret.wav\nc,g,s3://other/x.wav\nd,g,nothing.wav\n"
    bucket.objects.put("songs/segments.csv", table.encode())
    source = open_source(bucket / "songs", DataConfig())
    for row, why in ((0, "leaves"), (1, "leaves"), (2, "does not exist"), (3, "does not exist")):
        with pytest.raises(UnreadableInput, match=why):
            source.raw(row, "audio")


def featurize_in_place(path: str, ready=None, environment=os.environ) -> None:
    take_environment(dict(environment))  # the server that forks processes has an older one
    store = open_store(location(path))
    if ready is not None:
        ready.set()
    with store.writing("audio/toy"):
        source = ToySource(toy_contents(60))
        extract(store["audio/toy"], ToyEncoder(delay_seconds=0.01), source, batch_size=4, save_every_seconds=0)


def test_killed_at_random_moments_the_store_ends_with_the_same_bytes(bucket, tmp_path):
    for path in (bucket / "features.zarr", tmp_path / "features.zarr"):
        with new_tree(path) as tree:
            toy_feature(tree, 60, 15)
    featurize_in_place(str(tmp_path / "features.zarr"))
    context = multiprocessing.get_context("forkserver")
    moments = random.Random(0)
    for _ in range(2):
        ready = context.Event()
        process = context.Process(
            target=featurize_in_place, args=(str(bucket / "features.zarr"), ready, dict(os.environ))
        )
        process.start()
        assert ready.wait(60)
        process.join(moments.uniform(0.2, 0.6))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert list(verify(open_store(bucket / "features.zarr"))) == []
    featurize_in_place(str(bucket / "features.zarr"))
    assert every_object(bucket / "features.zarr") == every_file(tmp_path / "features.zarr")
