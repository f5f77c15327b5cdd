"""Suites: sets of lm-eval's tasks with their numbers of worked examples, as the AFM report gives them.

Section 7 of the report names CoreEN (nine tasks), MMLU (5 shots) and GSM8K; of
these `core` has what lies in the data folder: ARC-Challenge (25 shots), PIQA (0), MMLU. Worked examples of
ARC-Challenge come out of its test set here, where the train set is not at hand; lm-eval leaves the question
itself out. Counts of shots that the report does not give are those of the Open LLM Leaderboard.
"""

from __future__ import annotations

from dataclasses import dataclass

from pomona.errors import PomonaError
from pomona.evaluation.local_sets import MMLU


@dataclass(frozen=True)
class SuiteTask:
    """metric: the one that counts, by lm-eval's name. generates: the model writes the answer."""

    name: str
    shots: int
    metric: str
    generates: bool = False


@dataclass(frozen=True)
class Suite:
    name: str
    about: str
    tasks: tuple[SuiteTask, ...]


SUITES = {
    suite.name: suite
    for suite in (
        Suite(
            "core",
            "common sense, science, knowledge: ARC-Challenge, PIQA, MMLU's 57 subjects",
            (
                SuiteTask("arc_challenge", 25, "acc_norm,none"),
                SuiteTask("piqa", 0, "acc_norm,none"),
                *(SuiteTask(name, 5, "acc,none") for name in MMLU),
            ),
        ),
        Suite(
            "quick",
            "a few minutes: ARC-Challenge, PIQA and four of MMLU's subjects",
            (
                SuiteTask("arc_challenge", 5, "acc_norm,none"),
                SuiteTask("piqa", 0, "acc_norm,none"),
                *(
                    SuiteTask(f"mmlu_{subject}", 5, "acc,none")
                    for subject in ("anatomy", "high_school_psychology", "marketing", "world_religions")
                ),
            ),
        ),
        Suite(
            "math", "GSM8K, 8 worked examples", (SuiteTask("gsm8k", 8, "exact_match,flexible-extract", True),)
        ),
    )
}


def suite_of(name: str) -> Suite:
    """PomonaError for a name that is none."""
    if name not in SUITES:
        raise PomonaError(f"suite {name}: there is none of that name; choose of {', '.join(SUITES)}")
    return SUITES[name]
