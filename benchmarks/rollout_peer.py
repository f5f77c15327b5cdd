"""The peers of roll-outs: transformers' `generate`, and llama.cpp's server, both sampling.

`GeneratePeer` starts the far end of this file, which needs torch and transformers,

    python -m benchmarks.rollout_peer

and asks it for one batch at a time. `SamplingServer` is the llama.cpp server of adapter_peer.py. Both sample
from the whole distribution at temperature 1 and end a response at its end token; tokens that stand behind one
to fill a batch up are not counted.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.adapter_peer import LineProcess, LlamaServer
from benchmarks.common import BenchmarkError
from benchmarks.peer import ROOT


class SamplingServer(LlamaServer):
    """llama.cpp's server with one slot per response that runs at the same time."""

    name = "llama.cpp"

    def sample(self, prompts: Sequence[Sequence[int]], n: int, tokens: int, seed: int) -> tuple[float, int]:
        """(seconds, tokens) of n responses to every prompt, all requests at once, with its prefix cache."""
        bodies = [
            self._body(
                prompt,
                None,
                n_predict=tokens,
                temperature=1.0,
                ignore_eos=False,
                cache_prompt=True,
                seed=seed + number * n + place,
            )
            for place in range(n)
            for number, prompt in enumerate(prompts)
        ]
        with ThreadPoolExecutor(len(bodies)) as pool:
            started = time.perf_counter()
            answers = list(pool.map(self._complete, bodies))
            seconds = time.perf_counter() - started
        return seconds, sum(int(answer["tokens_predicted"]) for answer in answers)


class GeneratePeer(LineProcess):
    """transformers' `generate`: the near end."""

    name = "transformers"

    def __init__(self, python: Path | str, model: Path, *, threads: int) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONWARNINGS": "ignore"}
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        command = [str(python), "-m", "benchmarks.rollout_peer"]
        super().__init__(subprocess.Popen(command, cwd=ROOT, env=environment, text=True, **pipes))
        try:
            self.facts = self._ask({"do": "load", "model": str(model), "threads": threads})
        except BenchmarkError:
            self.close()
            raise

    def sample(
        self, prompts: Sequence[Sequence[int]], n: int, tokens: int, seed: int, *, dtype: str, batch: int
    ) -> tuple[float, int]:
        """(seconds, tokens) of n responses to every prompt, `batch` sequences to a call."""
        request = {
            "do": "sample",
            "prompts": [list(prompt) for prompt in prompts],
            "n": n,
            "tokens": tokens,
            "seed": seed,
            "dtype": dtype,
            "batch": batch,
        }
        answer = self._ask(request)
        return float(answer["seconds"]), int(answer["tokens"])


# --- the far end -----------------------------------------------------------------------------------------


class _Generator:
    def __init__(self) -> None:
        self.directory = ""
        self.models: dict[str, Any] = {}
        self.end = 0

    def load(self, model: str, threads: int) -> dict[str, Any]:
        import torch
        import transformers

        torch.set_num_threads(threads)
        transformers.utils.logging.disable_progress_bar()
        self.directory = model
        return {"torch": torch.__version__, "transformers": transformers.__version__}

    def model(self, dtype: str) -> Any:
        import torch
        from transformers import AutoModelForCausalLM

        if dtype not in self.models:
            model = AutoModelForCausalLM.from_pretrained(self.directory, dtype=getattr(torch, dtype))
            self.models[dtype] = model.eval()
        return self.models[dtype]

    def sample(
        self, prompts: list[list[int]], n: int, tokens: int, seed: int, dtype: str, batch: int
    ) -> dict[str, Any]:
        import torch

        model = self.model(dtype)
        ends = model.generation_config.eos_token_id
        ends = set(ends if isinstance(ends, list) else [ends])
        rows = [prompt for prompt in prompts for _ in range(n)]
        torch.manual_seed(seed)
        count, started = 0, time.perf_counter()
        for start in range(0, len(rows), batch):
            part = rows[start : start + batch]
            width = max(map(len, part))
            pad = next(iter(ends))
            ids = torch.tensor([[pad] * (width - len(row)) + row for row in part])
            mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in part])
            with torch.inference_mode():
                out = model.generate(
                    input_ids=ids,
                    attention_mask=mask,
                    do_sample=True,
                    temperature=1.0,
                    top_k=0,
                    top_p=1.0,
                    max_new_tokens=tokens,
                    pad_token_id=pad,
                )
            for row in out[:, width:].tolist():
                place = next((at for at, token in enumerate(row) if token in ends), len(row) - 1)
                count += place + 1
        return {"seconds": time.perf_counter() - started, "tokens": count}


def main() -> int:
    """Reads one JSON request per line from standard input and answers each by one line."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever the libraries print must not land among the replies
    generator = _Generator()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = getattr(generator, request.pop("do"))(**request)
        except (ImportError, OSError, RuntimeError, ValueError) as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        replies.write(json.dumps(answer) + "\n")
        replies.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
