"""coremltools' palettisation as a peer, in a process and an environment of its own (`make coreml-setup`).

Its far end gets the matrices of one layer as a file, palettises them as linear modules of one torch model
with `PostTrainingPalettizer`, and measures the errors of what comes out with the same formula as ours. This
file imports nothing of pomona.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.peer import FarEnd, answer_requests

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

GROUP = 16  # rows that share a table


class CoremlPeer(FarEnd):
    """One layer at a time. `seconds(...)` times one palettisation of it."""

    def __init__(self, python: Path, threads: int) -> None:
        """Raises BenchmarkError: no such environment."""
        super().__init__(python, "benchmarks.palettize_peer", who="coremltools", setup="coreml-setup")
        self.facts = self.ask({"do": "start", "threads": threads})
        self.errors: dict[str, tuple[float, float]] = {}

    def load(self, layer: Path) -> None:
        """layer: an .npz of matrices `w.NAME` [N, K] and importances `h.NAME` [K]."""
        self.ask({"do": "load", "layer": str(layer.absolute())})

    def seconds(self, bits: int, *, workers: int, row_scales: bool) -> float:
        """Of one palettisation; its errors are kept in `errors` under a name for the setting."""
        answer = self.ask({"do": "palettise", "bits": bits, "workers": workers, "row_scales": row_scales})
        self.errors[setting_name(workers, row_scales)] = (answer["plain"], answer["weighted"])
        return float(answer["seconds"])


def setting_name(workers: int, row_scales: bool) -> str:
    scales = ", row scales" if row_scales else ""
    return f"{workers} process{'es' if workers > 1 else ''}{scales}"


def relative_errors(
    pairs: Sequence[tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]],
) -> tuple[float, float]:
    """(weight, what became of it, importance) of several matrices -> relative error of all of them together:
    sqrt(sum (w - q)^2 / sum w^2), and the same with every square times the importance of its column."""
    plain = [0.0, 0.0]
    weighted = [0.0, 0.0]
    for weight, quantised, importance in pairs:
        for index, values in enumerate((quantised - weight, weight)):
            squares = (values.astype("float64") ** 2).sum(axis=0)
            plain[index] += float(squares.sum())
            weighted[index] += float(squares @ importance.astype("float64"))
    return (plain[0] / plain[1]) ** 0.5, (weighted[0] / weighted[1]) ** 0.5


# --- the far end -----------------------------------------------------------------------------------------


class _Server:
    def __init__(self) -> None:
        self.weights: Mapping[str, Any] = {}
        self.importance: Mapping[str, Any] = {}

    def start(self, threads: int) -> dict[str, Any]:
        import logging

        import coremltools
        import torch

        for name in logging.root.manager.loggerDict:  # it tells its progress, matrix by matrix
            if name.startswith("coremltools"):
                logging.getLogger(name).setLevel(logging.WARNING)
        torch.set_num_threads(threads)
        return {"coremltools": coremltools.__version__, "torch": torch.__version__}

    def load(self, layer: str) -> dict[str, Any]:
        import numpy as np

        with np.load(layer) as arrays:
            self.weights = {name[2:]: arrays[name] for name in arrays.files if name.startswith("w.")}
            self.importance = {name[2:]: arrays[name] for name in arrays.files if name.startswith("h.")}
        return {}

    def palettise(self, bits: int, workers: int, row_scales: bool) -> dict[str, Any]:
        import torch
        from coremltools.optimize.torch.palettization import (
            PostTrainingPalettizer,
            PostTrainingPalettizerConfig,
        )

        modules = torch.nn.ModuleDict()
        for name, weight in self.weights.items():
            linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
            linear.weight.data = torch.from_numpy(weight.copy())
            modules[name] = linear
        config = PostTrainingPalettizerConfig.from_dict(
            {
                "global_config": {
                    "n_bits": bits,
                    "granularity": "per_grouped_channel",
                    "group_size": GROUP,
                    "channel_axis": 0,
                    "enable_per_channel_scale": row_scales,
                }
            }
        )
        palettizer = PostTrainingPalettizer(modules, config)
        started = time.perf_counter()
        result = palettizer.compress(num_kmeans_workers=workers)
        seconds = time.perf_counter() - started
        found = {name: result[name].weight.detach().numpy() for name in self.weights}
        plain, weighted = relative_errors(
            [(weight, found[name], self.importance[name]) for name, weight in self.weights.items()]
        )
        return {"seconds": seconds, "plain": plain, "weighted": weighted}


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments != ["serve"]:
        print("usage: python -m benchmarks.palettize_peer serve", file=sys.stderr)
        return 2
    answer_requests(_Server)
    return 0


if __name__ == "__main__":
    sys.exit(main())
