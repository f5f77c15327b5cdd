"""The report's Table 10 for our models: 16 bit, compressed, recovered, in percent of 16 bit.

    python -m benchmarks.evaluation_recovery --quick
    python -m benchmarks.evaluation_recovery --model smollm2-135m-4bit --model smollm2-135m-3.5bit

IFEval at instruction level, QMSum by ROUGE-L and GSM8K with eight worked examples, asked greedily on our
runtime, by the code of `pomona eval recovery`. Intervals of 95% draw the items in pairs. The goals are the
report's figures for a recovered model of 3.5 bits; the report's models are thirty times larger. Needs
POMONA_DATA.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.common import Goal, Report, Row, machine_facts, run_command, usable_cores

MODEL, REFERENCE = "smollm2-135m-4bit", "smollm2-135m"
LIMITS = {"ifeval": 200, "qmsum": 100, "gsm8k_cot": 200}
QUICK_LIMITS = {"ifeval": 4, "qmsum": 3, "gsm8k_cot": 4}
TOKENS, QUICK_TOKENS = 384, 24
# Table 10 at 3.5 bits, recovered: IFEval, AlpacaEval (here QMSum), GSM8K.
TABLE_10 = {"ifeval": 98.8, "qmsum": 94.7, "gsm8k_cot": 92.1}


def run(options: argparse.Namespace) -> Report:
    from pomona.data.public_sets import data_folder
    from pomona.evaluation.recovery_table import COLUMNS, OPEN, TableOptions, contenders, measure, shown

    machine = machine_facts()
    limits, tokens = (QUICK_LIMITS, QUICK_TOKENS) if options.quick else (LIMITS, TOKENS)
    models = options.model or [MODEL]
    chosen = contenders(options.reference, models[:1] if options.quick else models)
    with tempfile.TemporaryDirectory(prefix="pomona-recovery-") as folder:
        table = measure(
            chosen,
            data=data_folder(options.data),
            work=Path(options.work or folder),
            options=TableOptions(limits=limits, max_new_tokens=tokens),
            threads=options.threads,
            progress=_progress,
        )
    header, lines = shown(table)
    names = [name or "state" for name in header]
    rows: list[Row] = [dict(zip(names, line, strict=True)) for line in lines]
    recovered = next((row for row in table.rows if row.kind == "recovered"), None)
    goals = []
    for task, bound in TABLE_10.items():
        found = recovered.columns[task].percent if recovered is not None else None
        value = None if found is None or found.value > OPEN / 2 else found.value
        goals.append(Goal(f"{COLUMNS[task][1]}, recovered, percent of 16 bit", value, bound))
    notes = [
        ", ".join(f"{count:,} items of {task}" for task, count in table.limits.items())
        + f"; answers of at most {tokens} tokens",
        "value = percent of the 16-bit model's (95% interval, items drawn in pairs); `open`: no bound, for "
        "in some draws the 16-bit model has no right item",
        "the goals are those of the report's recovered model of 3.5 bits, for the first model here",
    ]
    return Report(
        "evaluation_recovery", {"rows": rows, "notes": notes, "table": table.to_json()}, goals, machine
    )


def _progress(label: str, done: int, total: int) -> None:
    if label == "models":
        print(f"model {done + 1} of {total}", file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.evaluation_recovery",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="a few items: does it run, not what is it worth")
    parser.add_argument("--model", action="append", metavar="NAME", help=f"compressed models ({MODEL})")
    parser.add_argument("--reference", default=REFERENCE, help="the 16-bit model")
    parser.add_argument("--work", metavar="FOLDER", help="keep answers there, and go on from them")
    parser.add_argument("--data", type=Path, help="public data sets (POMONA_DATA)")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.set_defaults(rounds=None)
    return run_command(parser, run, argv)


if __name__ == "__main__":
    sys.exit(main())
