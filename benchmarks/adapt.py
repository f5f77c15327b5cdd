"""Training a task adapter: tokens per second and peak memory, against TRL's SFTTrainer with PEFT.

    python -m benchmarks.adapt --quick
    python -m benchmarks.adapt

Both sides train a rank-16 adapter on all projections of the same 16-bit model, on the same rows with the same
learnt tokens, in processes of their own, in turns; neither recomputes activations. TRL is tried in six
settings first (bfloat16 and float32; rows padded, grouped by length, packed; with --quick, padded alone) and
the fastest is the peer.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.adapt_peer import ALPHA, RANK, SETTINGS, Contestant, Setting
from benchmarks.common import (
    Goal,
    Report,
    Row,
    interleave,
    machine_facts,
    median_and_range,
    ratios,
    run_command,
    usable_cores,
)

MODEL = "smollm2-135m"
FASTER = 1.5
ROWS, BATCH, ROUNDS = 64, 16, 3
TRIAL_ROWS = 8  # on which TRL's settings are tried
QUICK_ROWS, QUICK_BATCH, QUICK_ROUNDS = 4, 4, 1
OURS = "pomona"


def run(options: argparse.Namespace) -> Report:
    from pomona.models.store import resolve

    machine = machine_facts()
    model = resolve(options.model)
    count, batch = (QUICK_ROWS, QUICK_BATCH) if options.quick else (ROWS, BATCH)
    rounds = options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pomona-adapt-")))
        rows = training_rows(model, count)
        settings = SETTINGS[::3] if options.quick else SETTINGS
        trial = count if options.quick else TRIAL_ROWS
        path, few = folder / "rows.json", folder / "few.json"
        path.write_text(json.dumps(rows), encoding="utf-8")
        few.write_text(json.dumps(rows[:trial]), encoding="utf-8")
        tried: dict[str, float] = {}
        for setting in settings:
            _progress(f"TRL, {setting}")
            with Contestant(model, few, batch=trial, threads=options.threads, setting=setting) as one:
                if not options.quick:
                    one.seconds()
                tried[str(setting)] = one.seconds()
        best = min(settings, key=lambda setting: tried[str(setting)])
        theirs = f"TRL, {best}"
        kept = stack.enter_context(
            Contestant(model, path, batch=batch, threads=options.threads, setting=best)
        )
        ours = stack.enter_context(Contestant(model, path, batch=batch, threads=options.threads))
        for one in (ours, kept):  # the first pass of a process sets things up
            one.seconds()
        seconds = interleave(
            {OURS: ours.seconds, theirs: kept.seconds},
            rounds,
            on_round=lambda done, total: _progress(f"round {done} of {total}"),
        )
        memory = {OURS: ours.memory_gb(), theirs: kept.memory_gb()}
        product = ours.product_speed()
        facts = {**ours.facts, **kept.facts}
    tokens = sum(len(row["ids"]) - 1 for row in rows)
    learnt = sum(map(sum, (row["learnt"] for row in rows)))
    return Report(
        benchmark="adapt",
        machine=machine,
        results={
            "model": options.model,
            "threads": options.threads,
            "rows": table(seconds, memory, tokens),
            "notes": notes(
                best, tried, facts, options.threads, (count, batch, tokens, learnt), seconds[OURS], product
            ),
            "seconds": seconds,
            "memory_gb": memory,
            "tokens": tokens,
            "learnt": learnt,
            "tried_seconds": tried,
            "versions": {name: facts[name] for name in ("torch", "trl", "peft", "transformers")},
        },
        goals=goals(seconds[OURS], seconds[theirs]),
    )


def training_rows(model: Path, count: int) -> list[dict[str, Any]]:
    """Built-in prose in rows of uneven length: a passage of 30 to 220 words, of which a tenth to a third is
    the answer. Token ids and which are learnt."""
    from pomona.adapters.data import Row as TrainingRow
    from pomona.adapters.packing import encode_row
    from pomona.data.builtin_text import evaluation_text
    from pomona.models.tokenizer import Tokenizer

    tokenizer = Tokenizer.from_directory(model)
    words = evaluation_text().split()
    found = []
    for number in range(count):
        size = 30 + (number * 67) % 191
        start = (number * 131) % (len(words) - size)
        passage = words[start : start + size]
        answer = passage[: size // (3 + number % 8)]
        messages = (
            {"role": "user", "content": f"Shorten this text.\n\n{' '.join(passage)}"},
            {"role": "assistant", "content": " ".join(answer)},
        )
        example, _ = encode_row(TrainingRow(number + 1, messages), tokenizer)
        found.append({"ids": example.ids.tolist(), "learnt": example.learnt.tolist()})
    return found


def table(seconds: Mapping[str, Sequence[float]], memory: Mapping[str, float], tokens: int) -> list[Row]:
    ours = seconds[OURS]
    return [
        {
            "trainer": name,
            "tokens/s": tokens / statistics.median(values),
            "peak memory, GB": memory[name],
            "pomona, times its speed": median_and_range(ratios(values, ours)),
        }
        for name, values in seconds.items()
    ]


def goals(ours: Sequence[float], theirs: Sequence[float]) -> list[Goal]:
    faster = statistics.median(ratios(theirs, ours))
    return [Goal("tokens per second over those of TRL's fastest setting", faster, FASTER)]


def notes(
    best: Setting,
    tried: Mapping[str, float],
    facts: Mapping[str, Any],
    threads: int,
    shape: tuple[int, int, int, int],
    ours: Sequence[float],
    product: float,
) -> list[str]:
    count, batch, tokens, learnt = shape
    # Forwards and the gradient of the inputs; the base's weights get none. Logits for learnt tokens alone.
    operations = 4 * (facts["weights"] * tokens + facts["head"] * learnt)
    share = operations / statistics.median(ours) / product
    settings = ", ".join(f"{name}: {seconds:.1f} s" for name, seconds in tried.items())
    return [
        f"{count} rows of {tokens / count:.0f} tokens in the mean, of which {learnt / tokens:.0%} learnt; "
        f"{batch} rows a step, rank {RANK}, alpha {ALPHA}, {threads} threads, no recomputed activations. "
        "A token counts once, padding never",
        f"TRL {facts['trl']}, PEFT {facts['peft']}, transformers {facts['transformers']}, torch "
        f"{facts['torch']}; its settings on a few rows: {settings}; kept: {best}",
        f"What bounds ours: the products with the base's weights, forwards and backwards, and with the head "
        f"need {operations / 1e9:,.0f} GFLOP a pass, done at {share:.0%} of the speed of one "
        f"large bfloat16 product here ({product / 1e9:,.0f} GFLOP/s)",
    ]


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.adapt", description=(__doc__ or "").split("\n")[0]
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="few rows, one round")
    add("--model", default=MODEL, help="a 16-bit model (default: %(default)s)")
    add("--threads", type=int, default=min(2, usable_cores()), help="of both (default: %(default)s)")
    add("--rounds", type=int, help=f"of turns (default: {ROUNDS}, quick: {QUICK_ROUNDS})")
    add("--json", type=Path, metavar="FILE", help="write the last line to this file too")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
