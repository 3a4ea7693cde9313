"""What 10^5, 10^7 and 10^9 segments take: bytes, objects, requests, GPU hours, and what breaks first.

    python -m benchmarks.scale               # the tables of docs/scale.md, from the inputs below
    python -m benchmarks.scale --measure     # those inputs measured again on this machine, as JSON; about two minutes

Three kinds of numbers go in, and are kept apart. *Measured* here: bytes and objects of a store that a run wrote, the
requests it made, seconds per row, the time to open stores. *Counted*: floating-point operations of the real
architectures with random weights. *Assumed*: peak and utilisation of a GPU, how machines differ and how often they
fail. The simulation of a job array and of a cluster has a fixed seed.
"""

from __future__ import annotations

import heapq
import json
import math
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np

SIZES = (10**5, 10**7, 10**9)
CHUNK_ROWS = 1024
INPUTS = Path(__file__).with_suffix(".json")  # of the last `--measure`

# Assumed. Peaks: NVIDIA A100 data sheet (2021), dense: 312 TFLOPS in bfloat16, 19.5 in float32.
PEAK = {"bf16": 312e12, "fp32": 19.5e12}
UTILISATION = (0.15, 0.45)  # of the peak: small batches of short sequences are at the lower end
SPEED_SPREAD = 0.15  # standard deviation of the logarithm of a worker's speed
FAILURES_PER_HOUR = 0.05  # of a worker: a spot machine in 20 hours
RESTART_SECONDS = 180.0
SAVE_EVERY_SECONDS = 10.0  # as `featurize.extract` has it
SEED = 0


# What is counted and measured


class Requests(Counter[str]):
    """Requests that an object store would see, by what a `stores.zarr_store.ZarrTree` is asked for."""

    def watch(self, tree: Any) -> None:
        def counted(method: str, count: Callable[..., dict[str, int]]) -> None:
            original = getattr(tree, method)

            def call(*arguments: Any, **options: Any) -> Any:
                self.update(count(*arguments, **options))
                return original(*arguments, **options)

            setattr(tree, method, call)

        def chunks(path: str, start: int = 0, stop: int | None = None) -> dict[str, int]:
            shape, _, rows = tree.layout(path)
            stop = shape[0] if stop is None else stop
            return {"GET": math.ceil(stop / rows) - start // rows}

        counted("read", chunks)
        counted("write", lambda _path, _start, _values: {"PUT": 1})
        counted("has_chunk", lambda _path, _number: {"HEAD": 1})
        counted("stored_chunks", lambda _path: {"LIST": 1})
        counted("attributes", lambda _path: {"GET": 1})
        counted("set_attributes", lambda _path, _attributes: {"PUT": 1})
        counted("children", lambda _path: {"LIST": 1})


class Tiny:
    """Made when it is needed: the benchmarks are listed without importing torch."""

    @staticmethod
    def encoder(width: int) -> Any:
        import torch

        from featurize.encoders.base import Encoded, TextEncoder, stack_vectors

        class Encoder(TextEncoder):
            name = "tiny"

            def __init__(self) -> None:
                super().__init__()
                self.width, self.settings = width, {}

            def prepare(self, raw: Any) -> np.ndarray:
                return np.full(self.width, len(raw.text), np.float32)

            collate = staticmethod(stack_vectors)

            def forward(self, batch: dict[str, torch.Tensor]) -> Encoded:
                return Encoded(batch["vectors"])

        return Encoder()


class Texts:
    def raw(self, row: int) -> Any:
        from featurize.segments import RawText

        return RawText(f"line {row}")


def measure_store(folder: Path, n_chunks: int) -> dict[str, Any]:
    """Bytes and objects a row and chunk of a feature, what the loop costs without a model, and its requests."""
    from featurize.extract import extract
    from stores import open_store

    path = new_store(folder / "rows.zarr", n_chunks * CHUNK_ROWS)
    found: dict[str, Any] = {"bytes_per_row": {}}
    for width in (512, 768):
        encoder = Tiny.encoder(width)
        store = open_store(path)
        feature = store.create_feature(f"text/tiny{width}", encoder.record.to_dict())
        requests = Requests()
        requests.watch(store.tree)
        started = time.perf_counter()
        extract(feature, encoder, Texts())
        found["loop_seconds_per_row"] = (time.perf_counter() - started) / store.n_segments
        files = [
            file for file in (path / f"features/text/tiny{width}").rglob("*") if "c" in file.parts and file.is_file()
        ]
        found["bytes_per_row"][str(width)] = sum(file.stat().st_size for file in files) / store.n_segments
        found["objects_per_chunk"] = len(files) / n_chunks
        found["requests_per_chunk"] = {kind: round(n / n_chunks, 2) for kind, n in sorted(requests.items())}
    ids = [file for file in (path / "segments").rglob("*") if file.is_file()]
    found["segment_bytes_per_row"] = sum(file.stat().st_size for file in ids) / store.n_segments
    return found


def new_store(path: Path, n: int, chunk_rows: int = CHUNK_ROWS) -> Path:
    from stores.base import STRING
    from stores.store import Store
    from stores.zarr_store import new_zarr_tree

    segments = {
        "id": np.array([f"song_{i // 140:07}_{i % 140:03}" for i in range(n)], STRING),
        "group": np.array([f"song_{i // 140:07}" for i in range(n)], STRING),
    }
    with new_zarr_tree(path) as tree:
        Store.create(tree, segments, {}, {"layout": "benchmark"}, chunk_rows)
    return path


def measure_opening(folder: Path, sizes: tuple[int, ...]) -> dict[str, float]:
    """Seconds to open a store of so many rows and read its ids; and to list the chunks of an array."""
    from stores import open_store

    found = {}
    for n in sizes:
        path = new_store(folder / f"{n}.zarr", n)
        started = time.perf_counter()
        store = open_store(path)
        assert len(store.ids) == n
        found[str(n)] = time.perf_counter() - started
    return found


def measure_listing(folder: Path, n_chunks: int) -> dict[str, float]:
    """Seconds to list the chunks of an array that has so many, and to look whether one is there."""
    from stores.zarr_store import new_zarr_tree

    with new_zarr_tree(folder / "listed.zarr") as tree:
        tree.create("array", (n_chunks,), np.dtype(np.uint8), 1)
        (tree.path / "array" / "c").mkdir()
        for number in range(n_chunks):
            (tree.path / "array" / "c" / str(number)).write_bytes(b"\0" * 5)
        started = time.perf_counter()
        assert len(tree.stored_chunks("array")) == n_chunks
        listing = time.perf_counter() - started
        started = time.perf_counter()
        assert tree.has_chunk("array", n_chunks - 1)
        return {"chunks": n_chunks, "list": listing, "look": time.perf_counter() - started}


def count_flops() -> dict[str, dict[str, float]]:
    """Floating-point operations a row, by `torch.utils.flop_counter`: the real architectures, random weights."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import (
        ClapAudioConfig,
        ClapAudioModel,
        DebertaV2Model,
        Wav2Vec2Config,
        Wav2Vec2Model,
    )

    from benchmarks.encoders import deberta_config

    deberta = deberta_config(128_100)
    htsat = ClapAudioConfig(  # laion/larger_clap_music
        patch_embeds_hidden_size=128, depths=[2, 2, 12, 2], num_attention_heads=[4, 8, 16, 32], hidden_size=1024
    )
    cases: dict[str, tuple[str, int, Callable[[], Any], Callable[[], dict[str, Any]]]] = {
        "deberta": (
            "DeBERTa-v3-base, 128 tokens, 8 a batch",
            768,
            lambda: DebertaV2Model(deberta),
            lambda: {"input_ids": torch.ones(8, 128, dtype=torch.long)},  # what is relative is computed once a batch
        ),
        "wav2vec2": (
            "wav2vec2-base, 10 s",
            768,
            lambda: Wav2Vec2Model(Wav2Vec2Config()),
            lambda: {"input_values": torch.randn(1, 160_000)},
        ),
        "clap": (
            "CLAP HTSAT-base, 10 s",
            512,
            lambda: ClapAudioModel(htsat),
            lambda: {"input_features": torch.randn(1, 1, 1001, 64), "is_longer": torch.tensor([[False]])},
        ),
    }
    found = {}
    for name, (what, width, make, inputs) in cases.items():
        model = make().eval().requires_grad_(False)
        with FlopCounterMode(display=False) as counter:
            batch = inputs()
            model(**batch)
        n = len(next(iter(batch.values())))
        weights = sum(weight.numel() for weight in model.parameters())
        found[name] = {"what": what, "width": width, "flops": counter.get_total_flops() / n, "weights": weights}
    return found


def measure_encoders(n: int) -> dict[str, float]:
    """Seconds a row on one core: what prepares audio for a GPU, and the encoders that need none."""
    from benchmarks.encoders import clips, demo_raws, fitted_lsa
    from featurize.encode import encode
    from featurize.encoders import build_encoder

    found = {}
    for name, raws in {"mel_stats": clips(n), "midi_stats": demo_raws("midi"), "lsa": demo_raws("text")}.items():
        encoder = fitted_lsa(Path()) if name == "lsa" else build_encoder(name)
        encode(encoder.eval(), [encoder.prepare(raws[0])])
        started = time.perf_counter()
        encode(encoder, [encoder.prepare(raw) for raw in raws])
        found[name] = (time.perf_counter() - started) / len(raws)
    return found


def measure(small: bool = False) -> dict[str, Any]:
    import torch

    from benchmarks import machine

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        return {
            "machine": machine("torch", "numpy", "zarr", "transformers"),
            "store": measure_store(folder, 2 if small else 8),
            "opening": measure_opening(folder, (2_000, 4_000) if small else (10**4, 10**5, 10**6)),
            "listing": measure_listing(folder, 100 if small else 20_000),
            "encoders": measure_encoders(1 if small else 4),
            **({} if small else {"flops": count_flops()}),
        }


# What follows


def simulate(
    n_chunks: int, chunk_seconds: float, n_workers: int, *, shared: bool, seed: int = SEED
) -> tuple[float, float]:
    """Hours until all is done, and what share of the work was done twice because a worker failed.

    shared: workers take the next chunk when they are free (Ray), and the chunk of one that fails goes back to the
    others; it is taken for lost altogether, though what was sent is not. Otherwise each has every n-th chunk (job
    array): one that fails comes back after `RESTART_SECONDS`, has lost at most what it had not saved, and goes on.
    """
    rng = np.random.default_rng(SEED)
    speed = np.exp(rng.normal(0, SPEED_SPREAD, n_workers))
    per_second = FAILURES_PER_HOUR / 3600
    lost = end = 0.0
    if not shared:
        for worker in range(n_workers):
            seconds = len(range(worker, n_chunks, n_workers)) * chunk_seconds / speed[worker]
            n_failures = rng.poisson(seconds * per_second)
            again = float(rng.uniform(0, SAVE_EVERY_SECONDS, n_failures).sum())
            lost += again
            end = max(end, seconds + again + n_failures * RESTART_SECONDS)
        return end / 3600, lost / (n_chunks * chunk_seconds)
    block = max(1, n_chunks // (500 * n_workers))  # chunks at a time; one at a time in the end, which is what counts
    left = n_chunks
    free = [(0.0, worker) for worker in range(n_workers)]
    while left:
        now, worker = heapq.heappop(free)
        taken = block if left > 8 * block * n_workers else 1
        seconds = taken * chunk_seconds / speed[worker]
        failed_after = rng.exponential(1 / per_second) if per_second else math.inf
        if failed_after < seconds:
            whole = int(failed_after * speed[worker] / chunk_seconds)
            left -= whole
            lost += failed_after - whole * chunk_seconds / speed[worker]
            heapq.heappush(free, (now + failed_after + RESTART_SECONDS, worker))
        else:
            left -= taken
            end = max(end, now + seconds)
            heapq.heappush(free, (now + seconds, worker))
    return end / 3600, lost / (n_chunks * chunk_seconds)


def tables(inputs: dict[str, Any]) -> dict[str, str]:
    """The tables of docs/scale.md by name, in Markdown."""
    return {
        "inputs": _inputs(inputs),
        "store": _store(inputs),
        "gpu": _gpu(inputs),
        "time": _time(inputs),
    }


def _inputs(inputs: dict[str, Any]) -> str:
    store, listing = inputs["store"], inputs["listing"]
    per_chunk = ", ".join(f"{n:g} {kind}" for kind, n in store["requests_per_chunk"].items())
    rows = [
        *(
            (f"bytes a row of a feature {width} wide, float16", f"{n:,.0f}")
            for width, n in store["bytes_per_row"].items()
        ),
        ("bytes a row of ids and groups", f"{store['segment_bytes_per_row']:,.0f}"),
        ("objects a chunk of a feature", f"{store['objects_per_chunk']:g}"),
        ("requests a chunk, first run", per_chunk),
        ("the loop without a model: read, hash, batch, write", f"{store['loop_seconds_per_row'] * 1e6:,.0f} µs a row"),
        *((f"open a store of {int(n):,} rows and read its ids", f"{s:.2g} s") for n, s in inputs["opening"].items()),
        (f"list {listing['chunks']:,} chunks of an array", f"{listing['list']:.2g} s"),
        ("look whether one is there", f"{listing['look'] * 1e6:,.0f} µs"),
        *((f"`{name}`, one core", f"{s * 1e3:,.3g} ms a row") for name, s in inputs["encoders"].items()),
    ]
    return _table(("measured", ""), rows)


def _store(inputs: dict[str, Any]) -> str:
    store = inputs["store"]
    rows = []
    for n in SIZES:
        n_chunks = math.ceil(n / CHUNK_ROWS)
        made = {kind: n_chunks * count for kind, count in store["requests_per_chunk"].items()}
        rows.append(
            (
                _power(n),
                f"{n_chunks:,}",
                _bytes(n * store["bytes_per_row"]["768"]),
                _bytes(n * sum(store["bytes_per_row"].values())),
                f"{n_chunks * store['objects_per_chunk']:,.0f}",
                f"{made.get('PUT', 0):,.0f}",
                f"{made.get('GET', 0):,.0f}",
                f"{made.get('HEAD', 0):,.0f}",
                _bytes(n * store["segment_bytes_per_row"]),
            )
        )
    heads = (
        "rows",
        "chunks",
        "768 wide",
        "768 and 512",
        "objects a feature",
        "PUT",
        "GET",
        "HEAD",
        "ids, groups",
    )
    return _table(heads, rows)


def _gpu(inputs: dict[str, Any]) -> str:
    rows = []
    for case in inputs["flops"].values():
        hours = {
            precision: [case["flops"] / (peak * share) / 3600 for share in reversed(UTILISATION)]
            for precision, peak in PEAK.items()
        }
        for precision, (least, most) in hours.items():
            rows.append(
                (
                    case["what"] if precision == "bf16" else "",
                    f"{case['flops'] / 1e9:,.1f}" if precision == "bf16" else "",
                    precision,
                    *(f"{_number(n * least)} to {_number(n * most)}" for n in SIZES),
                )
            )
    return _table(("a row", "GFLOP", "precision", *(f"{_power(n)} rows" for n in SIZES)), rows)


def _time(inputs: dict[str, Any]) -> str:
    """Wall time of wav2vec2 in bfloat16 at the (geometric) middle of the assumed utilisation."""
    case = inputs["flops"]["wav2vec2"]
    row_seconds = case["flops"] / (PEAK["bf16"] * math.sqrt(math.prod(UTILISATION)))
    rows = []
    for n in SIZES:
        n_chunks = math.ceil(n / CHUNK_ROWS)
        for n_workers in (1, 16, 256):
            if n_workers > n_chunks:
                continue
            ideal = n * row_seconds / n_workers / 3600
            cells = [f"{_number(ideal)} h"]
            for shared in (False, True):
                hours, lost = simulate(n_chunks, CHUNK_ROWS * row_seconds, n_workers, shared=shared)
                cells += [f"{hours / ideal:.2f}", f"{lost:.2%}"]
            rows.append((_power(n), str(n_workers), *cells))
    heads = ("rows", "GPUs", "ideal", "job array: times ideal", "work lost", "Ray: times ideal", "work lost")
    return _table(heads, rows)


def _table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [heads, tuple("---" if i == 0 else "---:" for i in range(len(heads))), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _power(n: int) -> str:
    return f"10^{round(math.log10(n))}"


def _bytes(n: float) -> str:
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if n >= factor:
            return f"{n / factor:,.1f} {unit}"
    return f"{n / 1e3:,.0f} kB"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


@click.command()
@click.option("--measure", "again", is_flag=True, help="Measure the inputs on this machine, and keep them.")
def main(again: bool) -> None:
    """The arithmetic of docs/scale.md."""
    if again:
        INPUTS.write_text(json.dumps(measure(), indent=1) + "\n", "utf-8")
    inputs = json.loads(INPUTS.read_text("utf-8"))
    click.echo(f"{inputs['machine']}\n")
    for name, table in tables(inputs).items():
        click.echo(f"{name}\n{table}\n")


if __name__ == "__main__":
    main()
