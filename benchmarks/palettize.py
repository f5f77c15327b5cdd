"""How fast a layer is palettised, and how well: our k-means against coremltools' in the same run.

    python -m benchmarks.palettize --quick        # a layer of SmolLM2-135M
    python -m benchmarks.palettize                # a layer of the 2.7 B shape too (random weights)
    python -m benchmarks.palettize --whole        # and the whole 2.7 B model through `pomona compress`

Both sides palettise the same seven matrices at 4 bits with one table per 16 whole rows, in turns. Errors are
relative and of all seven together: `plain` that of the weights, `weighted` with the mean squares of the
inputs, `output` that of what the layer gives for its inputs (their full second moment). Ours is shown as
plain k-means, the like of coremltools'; weighted; and error-compensated, which is what `pomona compress`
does, with whole rows and with its default of 64 columns per table, for which coremltools has no format.
Times are those of palettising; neither side measures its error in them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.common import (
    BenchmarkError,
    Goal,
    Report,
    Row,
    interleave,
    machine_facts,
    run_command,
    usable_cores,
)
from benchmarks.palettize_peer import GROUP, CoremlPeer, setting_name
from benchmarks.peer import ROOT

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pomona.compression.moments import InputMoments
    from pomona.compression.palettize import Method
    from pomona.models.config import ModelConfig

MODEL, LAYER = "smollm2-135m", 15
LARGE = "afm-on-device"
BITS = 4
ROUNDS, LARGE_ROUNDS = 3, 1
FASTER = 10.0  # times coremltools' speed
WHOLE_BITS, WHOLE_MINUTES, WHOLE_GIGABYTES = 3.5, 30.0, 12.0
PLAIN, WEIGHTED = "pomona, k-means", "pomona, weighted k-means"
COMPENSATED, FINE = "pomona, compensated", "pomona, compensated, tables of 64 columns"
FINE_COLUMNS = 64
# Of coremltools: processes (starting two takes longer than a small layer does), and a scale per row or none.
SETTINGS = ((1, False), (2, False), (1, True))


@dataclass(frozen=True)
class Layer:
    """Seven matrices and the full moments of their inputs, by short name such as q_proj."""

    name: str
    weights: Mapping[str, NDArray[np.float32]]
    moments: Mapping[str, InputMoments]

    @property
    def count(self) -> int:
        return sum(weight.size for weight in self.weights.values())


@dataclass(frozen=True)
class Errors:
    """Relative errors, see above."""

    plain: float
    weighted: float
    output: float


@dataclass(frozen=True)
class Result:
    """Of one layer: seconds of every round by contestant, and its errors."""

    layer: Layer
    seconds: Mapping[str, Sequence[float]]
    errors: Mapping[str, Errors]

    @property
    def peers(self) -> list[str]:
        return [name for name in self.seconds if name.startswith("coremltools")]

    def faster(self, ours: str) -> float:
        """Median over the rounds: coremltools' best time over that of ours."""
        best = [min(values) for values in zip(*(self.seconds[name] for name in self.peers), strict=True)]
        pairs = zip(best, self.seconds[ours], strict=True)
        return float(statistics.median(theirs / mine for theirs, mine in pairs))

    def over_peers(self, ours: str, kind: str) -> float:
        """Our error over the lowest of coremltools'."""
        least = min(getattr(self.errors[name], kind) for name in self.peers)
        return float(getattr(self.errors[ours], kind) / least)

    def rows(self) -> list[Row]:
        return [
            {
                "layer": f"{self.layer.name} ({self.layer.count / 1e6:.1f} M weights)",
                "by": name,
                "seconds": statistics.median(values),
                "plain error %": 100 * self.errors[name].plain,
                "weighted error %": 100 * self.errors[name].weighted,
                "output error %": 100 * self.errors[name].output,
            }
            for name, values in self.seconds.items()
        ]

    def to_json(self) -> dict[str, Any]:
        return {
            "layer": self.layer.name,
            "weights": self.layer.count,
            "seconds": {name: list(values) for name, values in self.seconds.items()},
            "errors": {name: vars(errors) for name, errors in self.errors.items()},
            "faster": {name: self.faster(name) for name in self.seconds if name not in self.peers},
        }


def run(options: argparse.Namespace) -> Report:
    machine = machine_facts()
    layers: list[tuple[Layer, int, Sequence[tuple[int, bool]]]] = [
        (real_layer(options.model, options.layer, options.threads), ROUNDS, SETTINGS)
    ]
    if not options.quick:
        layers.append((random_layer(LARGE), LARGE_ROUNDS, ((options.threads, False),)))
    results = []
    with CoremlPeer(Path(options.coreml), options.threads) as peer, tempfile.TemporaryDirectory() as folder:
        for layer, rounds, settings in layers:
            rounds = options.rounds or rounds
            results.append(contest(layer, peer, settings, options.threads, rounds, Path(folder)))
        facts = peer.facts
    whole = whole_model(options) if options.whole else None
    return Report(
        benchmark="palettize",
        machine=machine,
        results={
            "threads": options.threads,
            "rows": [row for result in results for row in result.rows()],
            "notes": notes(facts, options.threads, whole),
            "layers": [result.to_json() for result in results],
            "whole": whole,
            "peer": facts,
        },
        goals=goals(results, whole, wanted=options.whole),
    )


# --- layers ----------------------------------------------------------------------------------------------


def real_layer(model: str, layer: int, threads: int) -> Layer:
    """One layer of a 16-bit model, with the moments of its own reading of the built-in text."""
    from pomona.compression.moments import collect_moments
    from pomona.data.builtin_text import evaluation_text
    from pomona.models.config import ModelConfig
    from pomona.models.safetensors_file import Checkpoint, float32_from_bf16
    from pomona.models.store import resolve
    from pomona.models.tokenizer import Tokenizer
    from pomona.runtime.engine import Engine

    directory = resolve(model)
    config = ModelConfig.from_directory(directory)
    modules = layer_modules(config, layer)
    engine = Engine.load(directory, threads=threads)
    ids = Tokenizer.from_directory(directory).encode(evaluation_text(), parse_special=False)[:2048]
    moments = collect_moments(engine, [ids], full=True, modules=modules.values())
    with Checkpoint(directory) as checkpoint:
        weights = {
            short: float32_from_bf16(checkpoint.array(f"{module}.weight"))
            for short, module in modules.items()
        }
    found = {short: moments[module] for short, module in modules.items()}
    return Layer(f"{directory.name}, layer {layer}", weights, found)


def random_layer(preset: str) -> Layer:
    """Normal weights of variance 1 / columns in a preset's shapes; inputs that are uneven and correlated."""
    from pomona.compression.moments import InputMoments
    from pomona.models.presets import preset as find

    config = find(preset)
    shapes = config.linear_shapes()
    generator = np.random.default_rng(0)
    weights: dict[str, NDArray[np.float32]] = {}
    moments: dict[str, InputMoments] = {}
    shared: dict[int, InputMoments] = {}  # the same input for all that are as wide
    for short, module in layer_modules(config, 0).items():
        rows, columns = shapes[module]
        weights[short] = generator.standard_normal((rows, columns), np.float32) / np.float32(columns**0.5)
        if columns not in shared:
            scales = generator.lognormal(0.0, 0.75, columns).astype(np.float32)
            common = generator.standard_normal((columns, 64), np.float32) * np.float32(0.5 / 8)
            full = (common @ common.T + np.diag(np.full(columns, 0.75, np.float32))) * np.outer(
                scales, scales
            )
            shared[columns] = InputMoments(1, np.diag(full).astype(np.float64), full)
        moments[short] = shared[columns]
    return Layer(f"{preset}, a random layer", weights, moments)


def layer_modules(config: ModelConfig, layer: int) -> dict[str, str]:
    """Short name -> module of one layer. BenchmarkError if there is no such layer."""
    prefix = f"model.layers.{layer}."
    found = {name.rpartition(".")[2]: name for name in config.linear_shapes() if name.startswith(prefix)}
    if not found:
        raise BenchmarkError(f"--layer {layer}: the model has {config.num_hidden_layers} layers")
    return found


# --- the contest -----------------------------------------------------------------------------------------


def contest(
    layer: Layer,
    peer: CoremlPeer,
    settings: Sequence[tuple[int, bool]],
    threads: int,
    rounds: int,
    folder: Path,
) -> Result:
    """Both sides in turns. settings: processes of coremltools, and whether it has a scale per row."""
    path = folder / "layer.npz"
    arrays: dict[str, Any] = dict(layer.weights)
    np.savez(path, **arrays)
    peer.load(path)
    found: dict[str, dict[str, NDArray[np.float32]]] = {}
    ours: dict[str, tuple[Method, int | None]] = {
        PLAIN: ("kmeans", None),
        WEIGHTED: ("weighted", None),
        COMPENSATED: ("compensated", None),
        FINE: ("compensated", FINE_COLUMNS),
    }
    contestants: dict[str, Callable[[], float]] = {
        name: partial(palettise, layer, method, columns, threads, found, name)
        for name, (method, columns) in ours.items()
    }
    results = {}
    for workers, scales in settings:
        name = f"coremltools, {setting_name(workers, scales)}"
        results[name] = folder / f"{workers}{scales}.npz"
        contestants[name] = partial(peer.seconds, BITS, results[name], workers=workers, row_scales=scales)
    seconds = interleave(contestants, rounds, on_round=partial(_progress, layer.name))
    errors = {name: errors_of(layer, weights) for name, weights in found.items()}
    for name, result in results.items():
        with np.load(result) as weights:
            errors[name] = errors_of(layer, weights)
    return Result(layer, seconds, errors)


def palettise(
    layer: Layer,
    method: Method,
    table_columns: int | None,
    threads: int,
    found: dict[str, dict[str, NDArray[np.float32]]],
    name: str,
) -> float:
    """Seconds of ours for the whole layer, by default with whole rows per table. What the weights became goes
    into `found`. The factors of the moments are made anew each time."""
    from pomona.compression.palettize import palettize
    from pomona.models.palettized import unpack_palette

    fresh = {id(one): replace(one, _factors={}) for one in layer.moments.values()}
    moments = {short: fresh[id(one)] for short, one in layer.moments.items()}
    started = time.perf_counter()
    packed = {
        short: palettize(
            weight,
            moments[short],
            BITS,
            table_columns or weight.shape[1],
            method=method,
            threads=threads,
        ).parts
        for short, weight in layer.weights.items()
    }
    seconds = time.perf_counter() - started
    order = ("indices", "tables", "table_scales", "row_scales")
    found[name] = {short: unpack_palette(*(parts[part] for part in order)) for short, parts in packed.items()}
    return seconds


def errors_of(layer: Layer, quantised: Mapping[str, NDArray[np.float32]]) -> Errors:
    """Of all matrices together: root of the summed squares of the error over those of the weights; plain,
    weighted by the inputs' mean squares, and of the outputs, tr(E H E^T) over tr(W H W^T)."""
    sums = np.zeros((2, 3))
    for short, weight in layer.weights.items():
        moments = layer.moments[short]
        assert moments.full is not None
        for row, matrix in enumerate((quantised[short] - weight, weight)):
            squares = (matrix.astype(np.float64) ** 2).sum(axis=0)
            output = np.einsum("nk,nk->", matrix @ moments.full, matrix, dtype=np.float64)
            sums[row] += (squares.sum(), squares @ moments.diagonal, output)
    return Errors(*(float(value) for value in np.sqrt(sums[0] / sums[1])))


# --- the whole model -------------------------------------------------------------------------------------


def whole_model(options: argparse.Namespace) -> dict[str, Any]:
    """A random 16-bit model of the large shape through `pomona compress`: seconds and peak memory."""
    from pomona.models.presets import preset
    from pomona.models.random_init import random_model
    from pomona.models.store import cache_dir, resolve

    folder: Path = options.folder or cache_dir() / "benchmarks" / LARGE
    source = folder / f"{LARGE}-16bit"
    if not source.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        random_model(preset(LARGE), source, tokenizer_from=resolve(options.model), progress=_progress)
    target = folder / f"{LARGE}-compressed"
    command = [sys.executable, "-m", "pomona", "compress", str(source), "--out", str(target), "--overwrite"]
    command += ["--bits", f"{options.bits:g}", "--threads", str(options.threads), "--json"]
    started = time.perf_counter()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, stdout=output)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            raise BenchmarkError("pomona compress failed; its last words stand above")
        output.seek(0)
        report = json.loads(output.read())
    return {
        "model": LARGE,
        "bits": options.bits,
        "seconds": time.perf_counter() - started,
        "peak_gb": usage.ru_maxrss * 1024 / 1e9,
        "file_bytes": report["file_bytes"],
        "projection_bits_per_weight": report["projection_bits_per_weight"],
    }


# --- the report ------------------------------------------------------------------------------------------


def goals(results: Sequence[Result], whole: Mapping[str, Any] | None, *, wanted: bool) -> list[Goal]:
    found = []
    for result in results:
        layer = result.layer.name
        found.append(
            Goal(f"{layer}: weighted k-means, times coremltools' speed", result.faster(WEIGHTED), FASTER)
        )
        for ours, kind in ((PLAIN, "plain"), (WEIGHTED, "weighted"), (COMPENSATED, "output")):
            name = f"{layer}: {kind} error of {ours.removeprefix('pomona, ')} over coremltools'"
            found.append(Goal(name, result.over_peers(ours, kind), 1.0, "<="))
    if wanted:
        minutes = None if whole is None else whole["seconds"] / 60
        memory = None if whole is None else whole["peak_gb"]
        found.append(Goal(f"{LARGE}: minutes of `pomona compress`", minutes, WHOLE_MINUTES, "<="))
        found.append(Goal(f"{LARGE}: peak memory, GB", memory, WHOLE_GIGABYTES, "<="))
    return found


def notes(facts: Mapping[str, Any], threads: int, whole: Mapping[str, Any] | None) -> list[str]:
    lines = [
        f"{BITS} bits, one table per {GROUP} whole rows, {threads} threads; coremltools "
        f"{facts['coremltools']} (torch {facts['torch']}): PostTrainingPalettizer, with tables in float32; "
        "ours are int8 with a scale, and every row has one. Speed is compared with its fastest setting, "
        "error with its best",
    ]
    if whole is not None:
        lines.append(
            f"{whole['model']} (2.7 B random weights) at {whole['bits']:g} bits, calibration included: "
            f"{whole['seconds'] / 60:.1f} min, peak resident memory {whole['peak_gb']:.1f} GB, of which the "
            "mapped checkpoint is a part"
        )
    return lines


def _progress(label: str, done: int, total: int) -> None:
    if sys.stderr.isatty():
        end = "\n" if done == total else ""
        print(f"\r\033[K{label}: {done}/{total}", end=end, file=sys.stderr, flush=True)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.palettize", description=(__doc__ or "").split("\n")[0]
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="the real layer alone")
    add(
        "--whole", action="store_true", help=f"all of {LARGE} through `pomona compress` too (5.4 GB, minutes)"
    )
    add("--model", default=MODEL, help="the 16-bit model of the real layer (default: %(default)s)")
    add("--layer", type=int, default=LAYER, help="which of its layers (default: %(default)s)")
    add("--bits", type=float, default=WHOLE_BITS, help="of the whole model (default: %(default)g)")
    add("--folder", type=Path, help="of the whole model's files (default: in the cache of models)")
    add("--threads", type=int, default=min(2, usable_cores()), help="of both (default: %(default)s)")
    add("--rounds", type=int, help=f"of turns (default: {ROUNDS}; {LARGE_ROUNDS} for the large layer)")
    add("--json", type=Path, metavar="FILE", help="write the last line to this file too")
    add(
        "--coreml",
        default=str(ROOT / ".coreml/bin/python"),
        help="Python with coremltools (default: of .coreml)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
