"""coremltools' palettisation as a peer, in a process and an environment of its own (`make coreml-setup`).

Its far end gets the matrices of one layer as a file, palettises them as linear modules of one torch model
with `PostTrainingPalettizer`, and writes what came out into another, so that one piece of code measures the
errors of all. This file imports nothing of pomona.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.peer import FarEnd, answer_requests

GROUP = 16  # rows that share a table


class CoremlPeer(FarEnd):
    """One layer at a time. `seconds(...)` times one palettisation of it."""

    def __init__(self, python: Path, threads: int) -> None:
        """Raises BenchmarkError: no such environment."""
        super().__init__(python, "benchmarks.palettize_peer", who="coremltools", setup="coreml-setup")
        self.facts = self.ask({"do": "start", "threads": threads})

    def load(self, layer: Path) -> None:
        """layer: an .npz of matrices [N, K] by name."""
        self.ask({"do": "load", "layer": str(layer.absolute())})

    def seconds(self, bits: int, result: Path, *, workers: int, row_scales: bool) -> float:
        """Of one palettisation. What the weights became goes into `result`, an .npz."""
        answer = self.ask(
            {
                "do": "palettise",
                "bits": bits,
                "workers": workers,
                "row_scales": row_scales,
                "result": str(result.absolute()),
            }
        )
        return float(answer["seconds"])


def setting_name(workers: int, row_scales: bool) -> str:
    scales = ", row scales" if row_scales else ""
    return f"{workers} process{'es' if workers > 1 else ''}{scales}"


# --- the far end -----------------------------------------------------------------------------------------


class _Server:
    def __init__(self) -> None:
        self.weights: Mapping[str, Any] = {}

    def start(self, threads: int) -> dict[str, Any]:
        import logging
        import os

        os.environ["TQDM_DISABLE"] = "1"  # before it is imported
        import coremltools
        import torch

        logging.disable(logging.INFO)  # it tells of every matrix
        torch.set_num_threads(threads)
        return {"coremltools": coremltools.__version__, "torch": torch.__version__}

    def load(self, layer: str) -> dict[str, Any]:
        import numpy as np

        with np.load(layer) as arrays:
            self.weights = {name: arrays[name] for name in arrays.files}
        return {}

    def palettise(self, bits: int, workers: int, row_scales: bool, result: str) -> dict[str, Any]:
        import numpy as np
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
        found = palettizer.compress(num_kmeans_workers=workers)
        seconds = time.perf_counter() - started
        np.savez(result, **{name: found[name].weight.detach().numpy() for name in self.weights})
        return {"seconds": seconds}


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments != ["serve"]:
        print("usage: python -m benchmarks.palettize_peer serve", file=sys.stderr)
        return 2
    answer_requests(_Server)
    return 0


if __name__ == "__main__":
    sys.exit(main())
