"""The two sides of benchmarks.adapt, each in a process of its own: our trainer, and TRL's with PEFT.

Both load the same 16-bit model, get the same token ids with the same ones to learn, and answer how long one
pass over all rows takes and what memory their process has needed.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import BenchmarkError
from benchmarks.peer import FarEnd, answer_requests

RANK, ALPHA, LR = 16, 32, 1e-4


@dataclass(frozen=True)
class Setting:
    """How TRL is run: number type of the base, and what it does about rows of uneven length."""

    dtype: str  # float32 or bfloat16
    rows: str  # padded, by length (rows of like length together, padded), or packed

    def __str__(self) -> str:
        return f"{self.dtype}, {self.rows}"


SETTINGS = tuple(
    Setting(dtype, rows) for dtype in ("bfloat16", "float32") for rows in ("padded", "by length", "packed")
)


class Contestant(FarEnd):
    """One trainer. `seconds()` is one pass over all rows, the optimizer's steps included."""

    def __init__(
        self, model: Path, rows: Path, *, batch: int, threads: int, setting: Setting | None = None
    ) -> None:
        """rows: a JSON list of {"ids", "learnt"}. setting: of TRL; None is ours. BenchmarkError: TRL is not
        installed."""
        who = "pomona" if setting is None else "TRL"
        super().__init__(Path(sys.executable), "benchmarks.adapt_peer", who=who, setup="test")
        request = {"model": str(model), "rows": str(rows), "batch": batch, "threads": threads}
        if setting is not None:
            request |= {"dtype": setting.dtype, "rows_as": setting.rows}
        try:
            self.facts = self.ask({"do": "start_ours" if setting is None else "start_trl", **request})
        except BenchmarkError:
            self.close()
            raise

    def seconds(self) -> float:
        return float(self.ask({"do": "seconds"})["seconds"])

    def memory_gb(self) -> float:
        """The peak of the process's resident memory so far."""
        return float(self.ask({"do": "memory"})["bytes"]) / 1e9

    def product_speed(self) -> float:
        """Of ours: operations per second of one large bfloat16 product."""
        return float(self.ask({"do": "product_speed"})["speed"])


# --- the far end -----------------------------------------------------------------------------------------


class _Server:
    def __init__(self) -> None:
        self._pass: Any = None

    def start_ours(self, model: str, rows: str, batch: int, threads: int) -> dict[str, Any]:
        import numpy as np
        import torch

        from pomona.adapters.packing import Example, Split
        from pomona.adapters.training.task_trainer import Answers, TaskTrainer
        from pomona.compression.training.network import Network
        from pomona.compression.training.options import LoopOptions

        torch.set_num_threads(threads)
        examples = [
            Example(number, b"", np.array(row["ids"], np.int32), np.array(row["learnt"], bool))
            for number, row in enumerate(_read(rows))
        ]
        network = Network.load(model)
        options = LoopOptions(rank=RANK, lr=LR, batch=batch, accumulate=1, passes=1000)
        answers = Answers(network, Split(examples, examples[:1]))
        trainer = TaskTrainer(network, answers, options, Path(tempfile.gettempdir()))
        steps = len(examples) // batch

        def one_pass() -> float:
            started = time.perf_counter()
            for _ in range(steps):
                trainer._gradient()
                trainer._update()
            return time.perf_counter() - started

        self._pass = one_pass
        shapes = network.config.linear_shapes().values()
        return {
            "torch": torch.__version__,
            "weights": sum(n * k for n, k in shapes),
            "head": network.config.vocab_size * network.config.hidden_size,
        }

    def start_trl(
        self, model: str, rows: str, batch: int, threads: int, dtype: str, rows_as: str
    ) -> dict[str, Any]:
        try:
            import datasets
            import trl
        except ImportError as error:
            raise RuntimeError(f"is not installed ({error}); run: pip install 'pomona[train]'") from None
        import os

        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        import peft
        import torch
        import transformers

        torch.set_num_threads(threads)
        for library in (transformers, datasets):
            library.utils.logging.set_verbosity_error()
        datasets.disable_progress_bars()
        found = _read(rows)
        table = datasets.Dataset.from_list(
            [{"input_ids": row["ids"], "completion_mask": [int(x) for x in row["learnt"]]} for row in found]
        )
        base = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype))
        tokenizer = transformers.AutoTokenizer.from_pretrained(model)
        adapter = peft.LoraConfig(
            r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM"
        )
        steps = len(found) // batch
        packed = rows_as == "packed"
        folder = tempfile.mkdtemp(prefix="pomona-trl-")

        def config(size: int) -> Any:
            return trl.SFTConfig(
                output_dir=folder,
                use_cpu=True,
                bf16=dtype == "bfloat16",
                per_device_train_batch_size=size,
                gradient_accumulation_steps=1,
                gradient_checkpointing=False,
                num_train_epochs=1,
                learning_rate=LR,
                lr_scheduler_type="constant",
                max_length=1024,
                packing=packed,
                completion_only_loss=True,
                train_sampling_strategy="group_by_length" if rows_as == "by length" else "random",
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                logging_strategy="no",
            )

        size = batch
        if packed:  # as many packed windows in a step as there are rows in a step of the others
            windows = len(trl.pack_dataset(table, 1024, "bfd"))
            size = -(-windows // steps)
        stopwatch = _stopwatch()
        trainer = trl.SFTTrainer(
            model=base,
            args=config(size),
            train_dataset=table,
            processing_class=tokenizer,
            peft_config=adapter,
            callbacks=[stopwatch],
        )

        def one_pass() -> float:
            trainer.train()
            return float(stopwatch.seconds)

        self._pass = one_pass
        return {"trl": trl.__version__, "peft": peft.__version__, "transformers": transformers.__version__}

    def seconds(self) -> dict[str, Any]:
        return {"seconds": self._pass()}

    def memory(self) -> dict[str, Any]:
        return {"bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}

    def product_speed(self) -> dict[str, Any]:
        import torch

        rows, columns, tokens = 3072, 1024, 2048
        x = torch.randn(tokens, columns).bfloat16()
        weight = torch.randn(rows, columns).bfloat16()
        best = float("inf")
        for _ in range(5):
            started = time.perf_counter()
            torch.nn.functional.linear(x, weight)
            best = min(best, time.perf_counter() - started)
        return {"speed": 2 * rows * columns * tokens / best}


def _stopwatch() -> Any:
    """A callback of transformers: seconds from the first step's begin to the last one's end. What `train`
    does before and after is nobody's step."""
    import transformers

    class Stopwatch(transformers.TrainerCallback):  # type: ignore[misc, unused-ignore]
        started: float | None = None
        seconds = 0.0

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.started = None

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            if self.started is None:
                self.started = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.seconds = time.perf_counter() - (self.started or 0.0)

    return Stopwatch()


def _read(path: str) -> list[dict[str, Any]]:
    import json

    found: list[dict[str, Any]] = json.loads(Path(path).read_text(encoding="utf-8"))
    return found


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments != ["serve"]:
        print("usage: python -m benchmarks.adapt_peer serve", file=sys.stderr)
        return 2
    answer_requests(_Server)
    return 0


if __name__ == "__main__":
    sys.exit(main())
