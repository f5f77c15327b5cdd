"""What people's gradings say: wins with intervals, grades, agreement, and rows for the reward model.

    report = pair_report(gradings)                    # blind pairs, with grades of each side alone
    report = summary_report(gradings)                 # summaries in five dimensions
    rows = preferences(items, gradings)               # as `pomona align reward` reads them

Pairs are graded as the report's reward model is taught (AFM report, section 4.4): which response is better
and by how much, and for each response alone four questions with three grades. Summaries have the five
dimensions of section 7.7; a summary is good if all are good and poor if one is poor.

Graders may differ: an item counts once, with what most of its graders say; where they are split, preferences
are a tie and of two grades the lower one counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from pomona.adapters.data import Message
from pomona.adapters.metrics import Interval
from pomona.errors import PomonaError
from pomona.evaluation.agreement import Agreement, alpha
from pomona.evaluation.agreement import Level as Scale
from pomona.evaluation.statistics import Share, interval_json, mean_interval, paired_difference, sign_test
from pomona.posttraining.preferences import (
    GRADES,
    LEVELS,
    QUESTIONS,
    Grade,
    Level,
    Preference,
    Question,
    Response,
)

Side = Literal["a", "b"]
Verdict = Literal["a", "b", "tie"]
Dimension = Literal[
    "composition", "comprehensiveness", "groundedness", "following_instructions", "harmfulness"
]
SummaryGrade = Literal["poor", "neutral", "good"]

DIMENSIONS: tuple[Dimension, ...] = get_args(Dimension)
SUMMARY_GRADES: tuple[SummaryGrade, ...] = get_args(SummaryGrade)
_STRENGTHS = tuple(range(-len(LEVELS), len(LEVELS) + 1))  # B significantly better .. A significantly better


@dataclass(frozen=True)
class PairGrading:
    """One grader's view of one pair. level: by how much, unless it is a tie. a, b: the grades of each side;
    a question that was left open is not there. left: the side that stood there."""

    item: str
    grader: str
    verdict: Verdict
    level: Level | None = None
    a: Mapping[Question, Grade] = field(default_factory=dict)
    b: Mapping[Question, Grade] = field(default_factory=dict)
    left: Side = "a"

    @property
    def strength(self) -> int | None:
        """4 (A significantly better) .. 0 (tie) .. -4; None where nobody said by how much."""
        if self.verdict == "tie":
            return 0
        if self.level is None:
            return None
        size = len(LEVELS) - LEVELS.index(self.level)
        return size if self.verdict == "a" else -size


@dataclass(frozen=True)
class SummaryGrading:
    """One grader's grades of one summary, all five."""

    item: str
    grader: str
    system: str
    grades: Mapping[Dimension, SummaryGrade]

    @property
    def overall(self) -> SummaryGrade:
        given = set(self.grades.values())
        return "poor" if "poor" in given else "neutral" if "neutral" in given else "good"


@dataclass(frozen=True)
class GradedItem:
    """The texts of an item. id: by which gradings name it; key: the importer's name for it. b None: `a` is a
    summary of the prompt, which `system` made."""

    id: str
    prompt: tuple[Message, ...]
    a: str
    b: str | None = None
    license: str | None = None
    source: str | None = None
    key: str = ""
    system: str = ""


@dataclass(frozen=True)
class GraderShare:
    """left_preferred: of the grader's decided pairs, those won by the left side; far from half is a habit."""

    grader: str
    gradings: int
    left_preferred: Share


@dataclass(frozen=True)
class PairReport:
    """wins, ties, losses: items, from A's view. decided: wins of those that are no tie. win_rate: the mean
    over items of 1, 0.5 or 0 per grading. grades: question -> side -> grade -> gradings; better: question ->
    how much higher A's grades are (poor 0, fair 0.5, good 1)."""

    items: int
    gradings: int
    wins: Share
    ties: Share
    losses: Share
    decided: Share
    p: float
    win_rate: Interval
    grades: dict[Question, dict[Side, dict[Grade, int]]]
    better: dict[Question, Interval]
    agreement: dict[str, Agreement]
    graders: tuple[GraderShare, ...]

    def to_json(self) -> dict[str, Any]:
        shares = ("wins", "ties", "losses", "decided")
        return {
            "items": self.items,
            "gradings": self.gradings,
            **{name: getattr(self, name).to_json() for name in shares},
            "p": self.p,
            "win_rate": interval_json(self.win_rate),
            "grades": self.grades,
            "better": {question: interval_json(one) for question, one in self.better.items()},
            "agreement": {name: one.to_json() for name, one in self.agreement.items()},
            "graders": [
                {**vars(one), "left_preferred": one.left_preferred.to_json()} for one in self.graders
            ],
        }


@dataclass(frozen=True)
class SummaryReport:
    """systems: system -> "overall" or dimension -> grade -> its share of the items."""

    items: int
    gradings: int
    systems: dict[str, dict[str, dict[SummaryGrade, Share]]]
    agreement: dict[str, Agreement]

    def to_json(self) -> dict[str, Any]:
        return {
            "items": self.items,
            "gradings": self.gradings,
            "systems": {
                system: {
                    name: {grade: share.to_json() for grade, share in shares.items()}
                    for name, shares in rows.items()
                }
                for system, rows in self.systems.items()
            },
            "agreement": {name: one.to_json() for name, one in self.agreement.items()},
        }


def pair_report(gradings: Sequence[PairGrading]) -> PairReport:
    """PomonaError: nothing was graded."""
    by_item = _by_item(gradings)
    verdicts = Counter(_verdict(given) for given in by_item.values())
    wins, losses = verdicts["a"], verdicts["b"]
    worth = {"a": 1.0, "tie": 0.5, "b": 0.0}
    return PairReport(
        len(by_item),
        len(gradings),
        Share.wilson(wins, len(by_item)),
        Share.wilson(verdicts["tie"], len(by_item)),
        Share.wilson(losses, len(by_item)),
        Share.wilson(wins, wins + losses),
        sign_test(wins, losses),
        mean_interval([sum(worth[one.verdict] for one in given) / len(given) for given in by_item.values()]),
        {
            question: {
                "a": _counted(GRADES, (one.a.get(question) for one in gradings)),
                "b": _counted(GRADES, (one.b.get(question) for one in gradings)),
            }
            for question in QUESTIONS
        },
        _better(gradings),
        {
            "preference": _alpha(by_item.values(), lambda one: one.verdict, "nominal", ("a", "tie", "b")),
            "strength": _alpha(by_item.values(), lambda one: one.strength, "ordinal", _STRENGTHS),
            **{
                question: alpha(
                    [[side.get(question) for side in sides] for sides in _sides(by_item.values())],
                    "ordinal",
                    GRADES,
                )
                for question in QUESTIONS
            },
        },
        tuple(
            GraderShare(
                grader,
                len(own),
                Share.wilson(
                    sum(one.verdict == one.left for one in own), sum(one.verdict != "tie" for one in own)
                ),
            )
            for grader, own in sorted(_by(gradings, lambda one: one.grader).items())
        ),
    )


def summary_report(gradings: Sequence[SummaryGrading]) -> SummaryReport:
    """PomonaError: nothing was graded."""
    by_item = _by_item(gradings)

    def shares(
        items: Sequence[Sequence[SummaryGrading]], of: Callable[[SummaryGrading], SummaryGrade]
    ) -> dict[SummaryGrade, Share]:
        counts = Counter(_lower_median([of(one) for one in given], SUMMARY_GRADES) for given in items)
        return {grade: Share.wilson(counts[grade], len(items)) for grade in SUMMARY_GRADES}

    systems: dict[str, dict[str, dict[SummaryGrade, Share]]] = {}
    for system in sorted({one.system for one in gradings}):
        items = [given for given in by_item.values() if given[0].system == system]
        systems[system] = {"overall": shares(items, lambda one: one.overall)}
        systems[system] |= {name: shares(items, _dimension(name)) for name in DIMENSIONS}
    return SummaryReport(
        len(by_item),
        len(gradings),
        systems,
        {
            "overall": _alpha(by_item.values(), lambda one: one.overall, "ordinal", SUMMARY_GRADES),
            **{
                name: _alpha(by_item.values(), _dimension(name), "ordinal", SUMMARY_GRADES)
                for name in DIMENSIONS
            },
        },
    )


def preferences(items: Iterable[GradedItem], gradings: Sequence[PairGrading]) -> list[Preference]:
    """One row per pair with a winner, and one per graded response of a pair without: what the reward model
    learns from. Of equal rows one is made; an item that nobody graded makes none."""
    by_item = _by(gradings, lambda one: one.item)
    rows: list[Preference] = []
    for item in items:
        given = by_item.get(item.id)
        if not given or item.b is None:
            continue
        for chosen, rejected, level in _preferred(item.a, item.b, given):
            line = len(rows) + 1
            rows.append(Preference(line, item.prompt, chosen, rejected, level, item.license, item.source))
    return rows


def _preferred(
    a: str, b: str, given: Sequence[PairGrading]
) -> list[tuple[Response, Response | None, Level | None]]:
    """(better, worse, by how much), or what was graded alone."""
    if a == b:
        alone = [Response(a, _grades([side for one in given for side in (one.a, one.b)]))]
        return [(one, None, None) for one in alone if one.gradings]
    sides = [Response(a, _grades([one.a for one in given])), Response(b, _grades([one.b for one in given]))]
    verdict = _verdict(given)
    if verdict == "tie":
        return [(side, None, None) for side in sides if side.gradings]
    chosen, rejected = sides if verdict == "a" else sides[::-1]
    levels = [one.level for one in given if one.verdict == verdict and one.level is not None]
    weakest_first = LEVELS[::-1]
    return [(chosen, rejected, _lower_median(levels, weakest_first) if levels else None)]


def _verdict(given: Sequence[PairGrading]) -> Verdict:
    """What more of its graders say than anything else; else a tie."""
    [(first, count), *others] = Counter(one.verdict for one in given).most_common()
    return first if not others or others[0][1] < count else "tie"


def _lower_median(given: Sequence[Any], order: Sequence[Any]) -> Any:
    """order: the lowest first."""
    places = sorted(order.index(one) for one in given)
    return order[places[(len(places) - 1) // 2]]


def _grades(given: Sequence[Mapping[Question, Grade]]) -> dict[Question, Grade]:
    found: dict[Question, Grade] = {}
    for question in QUESTIONS:
        grades = [one[question] for one in given if question in one]
        if grades:
            found[question] = _lower_median(grades, GRADES)
    return found


def _better(gradings: Sequence[PairGrading]) -> dict[Question, Interval]:
    found: dict[Question, Interval] = {}
    for question in QUESTIONS:
        both = [one for one in gradings if question in one.a and question in one.b]
        means = [
            [sum(GRADES.index(side[question]) / 2 for side in sides) / len(sides) for sides in pair]
            for given in _by(both, lambda one: one.item).values()
            for pair in [([one.a for one in given], [one.b for one in given])]
        ]
        if means:
            found[question] = paired_difference([one[0] for one in means], [one[1] for one in means])
    return found


def _sides(items: Iterable[Sequence[PairGrading]]) -> list[list[Mapping[Question, Grade]]]:
    """Each side of a pair is a thing that was graded."""
    return [side for given in items for side in ([one.a for one in given], [one.b for one in given])]


def _alpha(
    items: Iterable[Sequence[Any]], of: Callable[[Any], Hashable | None], scale: Scale, values: Sequence[Any]
) -> Agreement:
    return alpha([[of(one) for one in given] for given in items], scale, values)


def _dimension(name: Dimension) -> Callable[[SummaryGrading], SummaryGrade]:
    return lambda one: one.grades[name]


def _counted(grades: Sequence[Grade], given: Iterable[Grade | None]) -> dict[Grade, int]:
    counts = Counter(given)
    return {grade: counts[grade] for grade in grades}


def _by_item(gradings: Sequence[Any]) -> dict[str, list[Any]]:
    if not gradings:
        raise PomonaError("nothing is graded yet; grade something first")
    return _by(gradings, lambda one: one.item)


def _by(rows: Iterable[Any], key: Callable[[Any], str]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for row in rows:
        found.setdefault(key(row), []).append(row)
    return found
