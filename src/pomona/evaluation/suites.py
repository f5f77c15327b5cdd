"""Suites: sets of tasks with their numbers of worked examples, as the AFM report gives them (section 7).

`core`, `quick` and `math` are lm-eval's tasks. Section 7 names CoreEN (nine tasks), MMLU (5 shots) and GSM8K;
of these `core` has what lies in the data folder: ARC-Challenge (25 shots), PIQA (0), MMLU. Worked examples of
ARC-Challenge come out of its test set here, where the train set is not at hand; lm-eval leaves the question
itself out. Counts of shots that the report does not give are those of the Open LLM Leaderboard. `instruct`,
`code`, `tools` and `long` are our own tasks, in which the model writes (generation_task.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pomona.errors import PomonaError
from pomona.evaluation.bfcl import BFCL
from pomona.evaluation.generation_task import GenerationTask
from pomona.evaluation.gsm8k import GSM8K
from pomona.evaluation.humaneval import HUMANEVAL
from pomona.evaluation.ifeval import IFEVAL
from pomona.evaluation.local_sets import MATH, MMLU, files_of
from pomona.evaluation.long_context import LONG
from pomona.evaluation.qmsum import QMSUM


@dataclass(frozen=True)
class SuiteTask:
    """A task of lm-eval. metric: the one that counts, by lm-eval's name; also: further ones. generates: the
    model writes the answer. optional: left out where its files (needs) are missing."""

    name: str
    shots: int
    metric: str
    generates: bool = False
    also: tuple[str, ...] = ()
    optional: bool = False

    @property
    def needs(self) -> tuple[str, ...]:
        """Files or folders below the data folder."""
        return files_of(self.name)


@dataclass(frozen=True)
class Suite:
    name: str
    about: str
    tasks: tuple[SuiteTask | GenerationTask, ...]

    def only(self, names: Sequence[str]) -> Suite:
        """The tasks whose names begin with one of these. PomonaError for a beginning of none."""
        for name in names:
            if not any(task.name.startswith(name) for task in self.tasks):
                there = ", ".join(task.name for task in self.tasks[:24])
                raise PomonaError(f"--task {name}: the suite {self.name} has no such task (there: {there})")
        return replace(self, tasks=tuple(task for task in self.tasks if task.name.startswith(tuple(names))))


# Our own tasks by their names, for the recovery table.
OWN = {task.name: task for task in (IFEVAL, QMSUM, GSM8K, HUMANEVAL, *BFCL, *LONG)}

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
        Suite("instruct", "IFEval: 541 prompts with instructions that a program can check", (IFEVAL,)),
        Suite(
            "math",
            "GSM8K, 8 worked examples; MATH, 4, where it is given",
            (
                SuiteTask("gsm8k", 8, "exact_match,flexible-extract", True, ("exact_match,strict-match",)),
                *(SuiteTask(name, 4, "exact_match,none", True, optional=True) for name in MATH),
            ),
        ),
        Suite("code", "HumanEval: 164 Python functions, run in the sandbox; pass@k", (HUMANEVAL,)),
        Suite("tools", "BFCL's single-turn categories, judged by the syntax tree of the calls", BFCL),
        Suite("long", "needles, variables and common words in 1,024 to 8,192 tokens", LONG),
    )
}


def suite_of(name: str) -> Suite:
    """PomonaError for a name that is none."""
    if name not in SUITES:
        raise PomonaError(f"suite {name}: there is none of that name; choose of {', '.join(SUITES)}")
    return SUITES[name]
