"""What guides cost: decoding with and without one, by kind of schema, alone and eight together.

    python -m benchmarks.guided --quick
    python -m benchmarks.guided --threads 1 --json guided.json

Every kind is measured in three ways that take turns. `free` writes the tokens of an answer without a guide,
`masks` samples the same number of tokens under the guide, one step for each; its ratio to `free` is the
overhead. `guided` is what a user gets: tokens that the grammar forces join the next step, so it takes fewer
steps for the same text. llama.cpp's grammars are measured on the same schemas where it is set up (`--peer`).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.common import (
    BenchmarkError,
    Goal,
    Report,
    interleave,
    machine_facts,
    ratios,
    run_command,
    usable_cores,
)
from benchmarks.peer import ROOT

if TYPE_CHECKING:
    from pomona.runtime.guided import Guide
    from pomona.runtime.model import Model

QUESTION = "Ada Lovelace is 36 and lives in London with two cats. Fill in the form about her."
TOGETHER = 8
TOKENS = 64

_PERSON = {
    "type": "object",
    "properties": {
        "first_name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "city": {"enum": ["London", "Paris", "Rome"]},
    },
    "required": ["first_name", "age", "city"],
    "additionalProperties": False,
}
# Long enough that no answer ends before TOKENS tokens.
KINDS: dict[str, dict[str, Any]] = {
    "records": {"type": "array", "items": _PERSON, "minItems": 12},
    "free text": {"type": "string", "minLength": 600},
    "bounded texts": {
        "type": "array",
        "items": {"type": "string", "minLength": 4, "maxLength": 12},
        "minItems": 80,
    },
    "patterns": {
        "type": "array",
        "items": {"type": "string", "pattern": "^[A-Z][a-z]{2,10}$"},
        "minItems": 80,
    },
    "dates and numbers": {
        "type": "array",
        "prefixItems": [
            {"type": "string", "format": "date-time"},
            {"type": "number", "minimum": 0, "maximum": 9},
        ]
        * 16,
        "minItems": 32,
    },
    "any JSON": {"type": "array", "minItems": 100},
}


class Contest:
    """One model; seconds per token of a run of TOKENS tokens in each of `sequences` answers."""

    def __init__(self, name: str, threads: int) -> None:
        from pomona.runtime.model import Model

        self.model: Model = Model.load(name, threads=threads, prefix_cache=False)
        self.prompt = self.model.render([{"role": "user", "content": QUESTION}])

    def run(
        self, guide: Guide | None, sequences: int, *, forced: bool, tokens: int = TOKENS
    ) -> tuple[float, int]:
        """Seconds per token and sequence after the first, and the steps of the run.

        forced: forced tokens join the next step. The prompt is read before the clock starts.
        """
        from pomona.runtime.engine import StepInput
        from pomona.runtime.sampling import Sampling

        engine = self.model.engine
        with ExitStack() as stack:
            open_ = [stack.enter_context(engine.new_sequence()) for _ in range(sequences)]
            guides = [None if guide is None else self.model.guides.start(guide) for _ in open_]
            pending = [list(self.prompt) for _ in open_]
            written = [0] * sequences
            started, steps, first = 0.0, 0, 0
            while min(written) < tokens + 1:
                if steps == 1:
                    started, first = time.perf_counter(), sum(written)
                inputs = [
                    StepInput(sequence, ids, Sampling(), None if guided is None else guided.mask())
                    for sequence, ids, guided in zip(open_, pending, guides, strict=True)
                ]
                sampled = engine.step(inputs)
                for index, token in enumerate(sampled):
                    guided = guides[index]
                    if guided is None:
                        pending[index] = [token]
                    elif forced:
                        pending[index] = guided.advance(token)
                    else:
                        guided.accept(token)
                        pending[index] = [token]
                    written[index] += len(pending[index])
                steps += 1
            seconds = time.perf_counter() - started
        return seconds / (sum(written) - first), steps - 1


class GrammarPeer:
    """llama.cpp's grammars on the same schemas: milliseconds per token with one, and without."""

    def __init__(self, python: Path, model: Path, threads: int) -> None:
        self._command = [str(python), "-m", "benchmarks.guided_peer", str(model.absolute()), str(threads)]

    def milliseconds(self, schemas: dict[str, Any], rounds: int) -> dict[str, dict[str, list[float]]]:
        request = {"schemas": schemas, "question": QUESTION, "tokens": TOKENS, "rounds": rounds}
        done = subprocess.run(
            self._command, cwd=ROOT, input=json.dumps(request), capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise BenchmarkError(f"llama.cpp's grammars failed: {done.stderr.strip()[-200:]}")
        result: dict[str, dict[str, list[float]]] = json.loads(done.stdout.splitlines()[-1])
        return result


def run(options: argparse.Namespace) -> Report:
    from pomona.runtime.guided import Guide

    machine = machine_facts()
    contest = Contest(options.model, options.threads)
    rounds = options.rounds or (3 if options.quick else 9)
    rows: list[dict[str, str | float]] = []
    overheads: dict[str, float] = {}
    speedups: list[float] = []
    figures: dict[str, dict[str, list[float]]] = {}
    peer = _peer(options, rounds)
    for name, schema in KINDS.items():
        guide = Guide.json_schema(schema)
        for sequences in (1, TOGETHER):
            ways: dict[str, Callable[[], float]] = {
                "free": partial(_milliseconds, contest, None, sequences, False),
                "masks": partial(_milliseconds, contest, guide, sequences, False),
                "guided": partial(_milliseconds, contest, guide, sequences, True),
            }
            for way in ways.values():  # warms caches, and compiles the guide
                way()
            label = name if sequences == 1 else f"{name}, {sequences} together"
            figures[label] = taken = interleave(ways, rounds, on_round=partial(_progress, label))
            overheads[label] = 100 * (statistics.median(ratios(taken["masks"], taken["free"])) - 1)
            gain = statistics.median(ratios(taken["free"], taken["guided"]))
            _, steps = contest.run(guide, 1, forced=True)
            row: dict[str, str | float] = {
                "ms/token": label,
                **{way: statistics.median(values) for way, values in taken.items()},
                "overhead of masks": f"{overheads[label]:.1f}%",
                "guided, times free": gain,
                "forced": f"{1 - steps / TOKENS:.0%}" if steps < TOKENS else "0%",
            }
            if peer is not None:
                row |= _peer_cells(peer.get(name) if sequences == 1 else None)
            rows.append(row)
            speedups.append(gain)
    alone = [overheads[name] for name in KINDS]
    together = [value for name, value in overheads.items() if name not in KINDS]
    return Report(
        benchmark="guided",
        machine=machine,
        results={
            "model": options.model,
            "threads": contest.model.engine.threads,
            "rounds": rounds,
            "rows": rows,
            "notes": notes(options, contest.model.engine.threads, rounds, peer is not None),
            "figures": figures,
            "overheads_percent": overheads,
            "llama_cpp": peer,
        },
        goals=[
            Goal(
                "overhead of masks, one answer, percent of decode time, median",
                statistics.median(alone),
                10,
                "<=",
            ),
            Goal("overhead of masks, one answer, the worst kind", max(alone), 10, "<="),
            Goal(f"overhead of masks, {TOGETHER} together, the worst kind", max(together), 10, "<="),
            Goal("guided against free decoding, the slowest kind, times", min(speedups), 0.9),
        ],
    )


def notes(options: argparse.Namespace, threads: int, rounds: int, peer: bool) -> list[str]:
    lines = [
        f"{options.model} on {threads} thread(s); medians of {rounds} rounds in which the ways take turns, "
        f"{TOKENS} tokens each, greedy. Ratios are taken round by round.",
        "free: no guide. masks: one step per token under the guide. guided: forced tokens join the next "
        "step, as `generate` does it; forced is their share.",
    ]
    if peer:
        lines.append(
            "llama.cpp: Q4_0 and its own JSON schema grammar, its own time per token without and with it."
        )
    return lines


def _milliseconds(contest: Contest, guide: Guide | None, sequences: int, forced: bool) -> float:
    return 1000 * contest.run(guide, sequences, forced=forced)[0]


def _peer(options: argparse.Namespace, rounds: int) -> dict[str, dict[str, list[float]]] | None:
    python = Path(options.peer)
    models = Path(options.peer_models) if options.peer_models else python.absolute().parent.parent / "models"
    model = models / "q4_0_pure.gguf"
    if not python.is_file() or not model.is_file():
        print(f"{model}: no llama.cpp to compare with (`make bench-setup`)", file=sys.stderr)
        return None
    return GrammarPeer(python, model, options.threads).milliseconds(KINDS, rounds)


def _peer_cells(taken: dict[str, list[float]] | None) -> dict[str, str]:
    if not taken:
        return {"llama.cpp free": "-", "with grammar": "-", "its overhead": "-"}
    free, grammar = statistics.median(taken["free"]), statistics.median(taken["grammar"])
    return {
        "llama.cpp free": f"{free:.2f}",
        "with grammar": f"{grammar:.2f}",
        "its overhead": f"{100 * (grammar / free - 1):.0f}%",
    }


def _progress(label: str, done: int, total: int) -> None:
    if sys.stderr.isatty():
        end = "\n" if done == total else ""
        print(f"\r{label}: {done}/{total}   ", end=end, file=sys.stderr, flush=True)
    elif done == 0:
        print(f"{label} ...", file=sys.stderr, flush=True)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.guided", description=(__doc__ or "").split("\n")[0]
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="coarser, in about a minute: 3 rounds")
    add("--model", default="smollm2-135m-4bit", help="ours (default: %(default)s)")
    add("--threads", type=int, default=min(2, usable_cores()), help="of everyone (default: %(default)s)")
    add("--rounds", type=int, help="how often each takes its turn (default: 9, or 3 with --quick)")
    add("--json", type=Path, metavar="FILE", help="write the last line to this file too")
    add("--peer", default=str(ROOT / ".peer/bin/python"), help="llama.cpp's Python (default: that of .peer)")
    add("--peer-models", help="folder of its GGUF files (default: `models` in that environment)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
