"""How the members of a round are made: one function per technique, each resumed where it was interrupted.

rs      fine-tuning on the committee's best responses (adapters/adapt.py): the distilled student
dpo     on pairs of the best and the worst response (dpo.py)
ipo     the same with the other loss
mdloo   reinforcement learning on the round's prompts and reward (mdloo.py)
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pomona.errors import PomonaError
from pomona.models.model_directory import Progress
from pomona.posttraining.prompts import Prompt
from pomona.posttraining.rewards import Reward
from pomona.posttraining.rollouts import RollOuts

if TYPE_CHECKING:
    from pomona.posttraining.itec import ItecOptions
    from pomona.posttraining.options import RewardOptions

Technique = Literal["rs", "dpo", "ipo", "mdloo"]
LEAST_ROWS = 2  # with fewer nothing can be held out


def train_member(
    technique: Technique,
    base: Path,
    folder: Path,
    name: str,
    *,
    prompts: Sequence[Prompt],
    reward: Reward,
    rollouts: RollOuts,
    start: str | None,
    options: ItecOptions,
    threads: int | None,
    progress: Progress | None,
) -> tuple[Path | None, str]:
    """(the new member's adapter, what is to be said about it). None: there is no new member, and why.

    folder: of the round, with picks.jsonl and pairs.jsonl. start: the adapter that dpo, ipo and mdloo begin
    as and are kept close to: the committee's best."""
    target, work = folder / name, folder / "work" / name
    if (target / "adapter_config.json").is_file():
        return target, "was there already"
    if technique == "rs":
        return _picks(base, folder, name, target, work, options, threads, progress)
    if technique == "mdloo":
        from pomona.posttraining.mdloo import is_unfinished, mdloo

        report = mdloo(
            base,
            prompts,
            reward,
            work=work,
            name=name,
            options=options.mdloo.with_changes(
                max_new_tokens=options.max_new_tokens, temperature=options.temperature, seed=options.seed
            ),
            start=start,
            target=target,
            resume=is_unfinished(work, base, name),
            threads=threads,
            rollouts=rollouts,
            progress=progress,
        )
        first, last = report.iterations[0], report.iterations[-1]
        return target, f"reward {first.reward:.3f} at first, {last.reward:.3f} at last"
    return _preferences(technique, base, folder, target, work, start, options, threads)


def _picks(
    base: Path,
    folder: Path,
    name: str,
    target: Path,
    work: Path,
    options: ItecOptions,
    threads: int | None,
    progress: Progress | None,
) -> tuple[Path | None, str]:
    from pomona.adapters.adapt import adapt

    picks = folder / "picks.jsonl"
    lines = set(picks.read_text(encoding="utf-8").splitlines())
    if len(lines) < LEAST_ROWS:
        return None, f"only {len(lines)} best responses: too few to learn from"
    report = adapt(
        base,
        picks,
        work=work,
        name=name,
        task="rs",
        options=options.picks.adapt(options.seed),
        target=target,
        skip_bad=True,
        resume=any(work.glob("*/checkpoint.safetensors")),
        threads=threads,
        progress=progress,
    )
    told = f"validation loss {report.start_loss:.3f} at first, {report.loss:.3f} at best"
    return report.directory, told if report.directory else f"{told}: nothing was gained"


def _preferences(
    technique: Technique,
    base: Path,
    folder: Path,
    target: Path,
    work: Path,
    start: str | None,
    options: ItecOptions,
    threads: int | None,
) -> tuple[Path | None, str]:
    from pomona.posttraining.dpo import preference_optimize
    from pomona.posttraining.preferences import read_preferences

    path = folder / "pairs.jsonl"
    count = len(path.read_text(encoding="utf-8").splitlines())
    if count < LEAST_ROWS:
        return None, f"only {count} pairs: too few to learn from"
    rows, data = read_preferences(path)
    result = preference_optimize(
        base,
        rows,
        target,
        work=work,
        data=data,
        options=options.preference.with_changes(loss=technique, seed=options.seed),
        start=None if start is None else Path(start),
        resume=any(work.glob("*/checkpoint-*")),
        restart=False,
        threads=threads,
    )
    return result.directory, f"{result.pairs} pairs, {data.read - data.good} of the file unsound"


def refresh_reward(
    base: Path,
    files: Sequence[Path],
    target: Path,
    work: Path,
    options: RewardOptions,
    threads: int | None,
) -> None:
    """A reward model from several files of preferences, the newest last. Contradictions are left out."""
    from pomona.posttraining.preferences import read_preferences
    from pomona.posttraining.reward import train_reward

    together = work / "preferences.jsonl"
    work.mkdir(parents=True, exist_ok=True)
    lines: list[Any] = [line for path in files for line in path.read_text(encoding="utf-8").splitlines()]
    if not lines:
        raise PomonaError(f"{files[-1]}: holds no preferences; give some")
    together.write_text("".join(f"{json.dumps(json.loads(line))}\n" for line in lines), encoding="utf-8")
    rows, data = read_preferences(together)
    train_reward(
        base,
        rows,
        target,
        work=work,
        data=data,
        options=options,
        resume=any(work.glob("*/checkpoint-*")),
        threads=threads,
    )
