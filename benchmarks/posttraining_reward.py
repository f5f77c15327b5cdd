"""The reward model on real pairs: soft labels against hard labels against a margin, on the same pairs.

    python -m benchmarks.posttraining_reward --quick
    python -m benchmarks.posttraining_reward --json reward.json

Pairs of hh_rlhf (harmless) and dpo_pairs that fit a short window, split by prompt; levels are assigned by
the rule of docs/preferences.md, since neither set has them. Two ways to train:

- *adapter*: a LoRA adapter and the heads, one epoch over a small part, the same rows, order and first values
  for each kind of label;
- *frozen*: the backbone's last states once for all pairs, then the linear head alone, fitted to its optimum
  in 5-fold cross-validation. Every pair is held out once, so that intervals are narrow.

Intervals are bootstrap intervals of 95% over pairs; differences are of the same pairs. Needs POMONA_DATA.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import Goal, Report, Row, machine_facts, run_command, usable_cores

if TYPE_CHECKING:
    from pomona.adapters.metrics import Interval
    from pomona.models.tokenizer import Tokenizer
    from pomona.posttraining.preferences import Preference
    from pomona.posttraining.reward_report import RewardReport

MODEL = "smollm2-135m"
LABELS = ("soft", "hard", "margin")
WINDOW, LEARN, HELD_OUT, FROZEN = 128, 320, 400, 1400
QUICK_WINDOW, QUICK_LEARN, QUICK_HELD_OUT, QUICK_FROZEN = 64, 24, 16, 40
FOLDS, RIDGE = 5, 1e-2
Floats = NDArray[np.float64]


def run(options: argparse.Namespace) -> Report:
    from pomona.models import store
    from pomona.models.tokenizer import Tokenizer
    from pomona.posttraining.work import need_training, set_threads

    need_training("posttraining_reward")
    machine = machine_facts()
    set_threads(options.threads)
    base = store.resolve(options.model)
    window, learn, held_out, frozen = (
        (QUICK_WINDOW, QUICK_LEARN, QUICK_HELD_OUT, QUICK_FROZEN)
        if options.quick
        else (WINDOW, LEARN, HELD_OUT, FROZEN)
    )
    tokenizer = Tokenizer.from_directory(base)
    rows = short_pairs(tokenizer, window, frozen, options.data)
    judged, rest = apart(rows, min(held_out, len(rows) // 2))
    table: list[Row] = [_row("the shorter response", "-", length_report(judged))]
    goals: list[Goal] = []
    facts: dict[str, Any] = {"pairs": len(rows), "window": window}
    for way, reports in (
        ("adapter", by_adapter(base, tokenizer, rest[:learn], judged, window, options.rank)),
        ("frozen", by_frozen_backbone(base, tokenizer, rows)),
    ):
        table += [_row(way, labels, report) for labels, report in reports.items()]
        facts[way] = {labels: report.to_json() for labels, report in reports.items()}
        accuracy = reports["soft"].accuracy
        low = None if accuracy is None else accuracy.low
        goals.append(Goal(f"{way}: accuracy with soft labels, lower end of the interval", low, 0.5))
        for other in ("hard", "margin"):
            gain = difference(reports["soft"], reports[other])
            table.append({**_empty(f"{way}: soft minus {other}"), "accuracy": _shown(gain, "+")})
            facts[way][f"soft minus {other}"] = vars(gain)
            goals.append(Goal(f"{way}: soft labels over {other}, lower end of the interval", gain.low, 0.0))
    return Report(
        benchmark="posttraining_reward",
        machine=machine,
        results={"model": options.model, "rows": table, "facts": facts, "notes": notes(facts, judged, learn)},
        goals=goals,
    )


def short_pairs(tokenizer: Tokenizer, window: int, count: int, folder: Path | None) -> list[Preference]:
    """Pairs of both sets whose conversations fit the window, mixed, at most `count`."""
    from pomona.posttraining.preference_sets import LICENSES, public_preferences
    from pomona.posttraining.preferences import fitting

    found: list[Preference] = []
    for name in LICENSES:
        rows, report = public_preferences(name, folder)
        _progress(f"{name}: {len(rows)} pairs, {report.counts()}")
        found += fitting(rows, tokenizer, window, report)
    random.Random(7).shuffle(found)
    return found[:count]


def apart(rows: Sequence[Preference], held_out: int) -> tuple[list[Preference], list[Preference]]:
    """(held out, the rest): no prompt is on both sides."""
    judged = list(rows[:held_out])
    keys = {row.prompt_key for row in judged}
    return judged, [row for row in rows[held_out:] if row.prompt_key not in keys]


def by_adapter(
    base: Path,
    tokenizer: Tokenizer,
    learn: Sequence[Preference],
    judged: Sequence[Preference],
    window: int,
    rank: int,
) -> dict[str, RewardReport]:
    from pomona.posttraining.conversations import encode, padding_token
    from pomona.posttraining.options import RewardOptions
    from pomona.posttraining.reward_model import RewardModel
    from pomona.posttraining.reward_report import evaluate
    from pomona.posttraining.training.base import quiet_libraries
    from pomona.posttraining.training.reward_trainer import new_network, new_trainer, reward_example
    from pomona.posttraining.training.trainer import run_trainer

    quiet_libraries()
    padding = padding_token(tokenizer)
    found = {}
    for labels in LABELS:
        options = RewardOptions(
            labels=labels,  # type: ignore[arg-type]
            rank=rank,
            lr=3e-4,
            batch=8,
            pass_rows=8,
            window=window,
            validation=0.0,
            checkpoint_steps=1 << 29,
        )
        examples = [
            reward_example(
                row,
                lambda response, row=row: encode(row.conversation(response), tokenizer).ids,  # type: ignore[misc]
                options.unknown_level,
            )
            for row in learn
        ]
        _progress(f"adapter, {labels}: {len(learn)} pairs to learn, {len(judged)} held out")
        with tempfile.TemporaryDirectory() as folder:
            trainer = new_trainer(new_network(base, options, None), examples, padding, options, Path(folder))
            run_trainer(trainer, Path(folder), options, resume=False)
        model = RewardModel(trainer.model, tokenizer, window, precision="bfloat16")
        found[labels] = evaluate(model, judged)
    return found


def by_frozen_backbone(
    base: Path, tokenizer: Tokenizer, rows: Sequence[Preference]
) -> dict[str, RewardReport]:
    from pomona.posttraining.preferences import LEVELS
    from pomona.posttraining.reward_report import report_of

    states = last_states(base, tokenizer, rows)
    levels = np.array([LEVELS.index(row.level) for row in rows if row.level is not None])
    # Rows of one prompt fall into one fold.
    prompts = {key: number for number, key in enumerate(dict.fromkeys(row.prompt_key for row in rows))}
    folds = np.array([prompts[row.prompt_key] % FOLDS for row in rows])
    found = {}
    for labels in LABELS:
        rewards = np.zeros((len(rows), 2))
        for fold in range(FOLDS):
            out = folds == fold
            head = fitted_head(states[~out], levels[~out], labels)
            rewards[out] = states[out] @ head
        found[labels] = report_of(rewards[:, 0], rewards[:, 1], [row.level or "" for row in rows])
    return found


def last_states(base: Path, tokenizer: Tokenizer, rows: Sequence[Preference]) -> Floats:
    """[pairs, 2, D]: of the untrained backbone, over their root mean square."""
    import torch

    from pomona.posttraining.conversations import encode, padding_token
    from pomona.posttraining.training.base import load_config, load_weights
    from pomona.posttraining.training.reward_network import GradedRewardNetwork, last_state
    from pomona.posttraining.training.reward_trainer import padded

    _progress(f"frozen: last states of {2 * len(rows)} conversations")
    network = GradedRewardNetwork(load_config(base))
    load_weights(network, base, head=False)
    network.eval()
    chats = [encode(row.conversation(one), tokenizer).ids for row in rows for one in row.responses]
    found = np.zeros((len(chats), network.config.hidden_size))
    order = sorted(range(len(chats)), key=lambda number: len(chats[number]))
    for at in range(0, len(order), 32):
        group = order[at : at + 32]
        ids, mask = padded([chats[number] for number in group], padding_token(tokenizer))
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            states = network.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        found[group] = last_state(states, mask).double().numpy()
    found /= np.sqrt((found**2).mean(-1, keepdims=True))
    return found.reshape(len(rows), 2, -1)


def fitted_head(states: Floats, levels: NDArray[np.int64], labels: str) -> Floats:
    """[D]: the minimum of the mean loss plus RIDGE |head|^2 / 2, a convex problem."""
    import torch

    from pomona.posttraining.training.reward_loss import ranking_loss

    features, level = torch.from_numpy(states), torch.from_numpy(levels)
    head = torch.zeros(states.shape[-1], dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS([head], max_iter=200, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def closure() -> Any:
        solver.zero_grad()
        rewards = features @ head
        loss = ranking_loss(rewards[:, 0], rewards[:, 1], level, labels).mean()  # type: ignore[arg-type]
        loss = loss + RIDGE * head.square().sum() / 2
        loss.backward()
        return loss

    solver.step(closure)
    result: Floats = head.detach().numpy()
    return result


def length_report(rows: Sequence[Preference]) -> RewardReport:
    """What preferring the shorter response is worth: a rule that needs no model."""
    from pomona.posttraining.reward_report import report_of

    sizes = np.array([[-len(one.text) / 1000 for one in row.responses] for row in rows])
    return report_of(sizes[:, 0], sizes[:, 1], [row.level or "" for row in rows])


def difference(ours: RewardReport, theirs: RewardReport) -> Interval:
    """Accuracy on the same pairs."""
    from pomona.adapters.metrics import mean, paired_bootstrap

    metric = mean("accuracy", lambda right, _: float(right))
    pairs = [(a, b) for a, b in zip(ours.right, theirs.right, strict=True) if np.isfinite([a, b]).all()]
    return paired_bootstrap(metric, [(a, 1.0) for a, _ in pairs], [(b, 1.0) for _, b in pairs])


def notes(facts: dict[str, Any], judged: Sequence[Preference], learn: int) -> list[str]:
    return [
        f"{facts['pairs']} pairs of conversations of at most {facts['window']} tokens; adapter: {learn} of "
        f"them learnt once, {len(judged)} held out; frozen: {FOLDS}-fold cross-validation over all",
        "levels are assigned by how many words both responses share, not by people: this shows what the "
        "losses do with a level, not what people's levels are worth",
        "hh_rlhf's labels are one person's each and noisy, and most of its pairs are about harm alone: a low "
        "accuracy here says as much about the pairs and the size of the base as about the losses",
        "the expected calibration error compares sigma of the gap with how often the model is right; soft "
        "labels aim at the targets of the levels",
    ]


def _row(way: str, labels: str, report: RewardReport) -> Row:
    error = report.calibration_error
    return {
        "trained": way,
        "labels": labels,
        "pairs": f"{report.pairs}",
        "accuracy": "-" if report.accuracy is None else _shown(report.accuracy),
        "calibration error": "-" if error is None or way.startswith("the shorter") else f"{error:.3f}",
        "gap, significantly": _gap(report, "significantly_better"),
        "gap, negligibly": _gap(report, "negligibly_better"),
    }


def _empty(what: str) -> dict[str, str]:
    names = ("labels", "pairs", "accuracy", "calibration error", "gap, significantly", "gap, negligibly")
    return {"trained": what, **dict.fromkeys(names, "")}


def _gap(report: RewardReport, level: str) -> str:
    return f"{report.gap[level]:+.2f}" if level in report.gap else "-"


def _shown(interval: Interval, sign: str = "") -> str:
    return f"{interval.value:{sign}.3f} ({interval.low:{sign}.3f} .. {interval.high:{sign}.3f})"


def _progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.posttraining_reward",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="a few pairs: does it run, not what is it worth")
    parser.add_argument("--model", default=MODEL, help="the base")
    parser.add_argument("--rank", type=int, default=8, help="of the adapter")
    parser.add_argument("--data", type=Path, help="public data sets (POMONA_DATA)")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.set_defaults(rounds=None)
    parser.add_argument("--json", type=Path, metavar="FILE")
    return run_command(parser, run, argv)


if __name__ == "__main__":
    sys.exit(main())
