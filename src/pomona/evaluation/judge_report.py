"""What a judge's verdicts say: win rates with intervals, length control, how far the judge is to be trusted.

    report = pair_report(judgements, ours, theirs)
    report.win_rate.value, report.orders_agree.value, report.length_controlled.value

Rows of every interval are questions: both orders and all turns of one are drawn together. A turn counts where
both orders have a verdict; what has none is counted by its reason.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pomona.adapters.data import BadRowError, parse_line, read_lines
from pomona.adapters.metrics import Interval
from pomona.errors import PomonaError
from pomona.evaluation.judge import Judgement
from pomona.evaluation.judge_questions import Answers
from pomona.evaluation.length_control import length_controlled
from pomona.evaluation.statistics import Share, interval_json, paired_difference, ratio_interval, sign_test

STRONG = 3  # Arena-Hard counts a strong verdict as three games
Label = tuple[str, int, float]  # question, turn, 1 / 0.5 / 0: a person's verdict from A's view


@dataclass(frozen=True)
class Pair:
    """One turn that was judged in both orders. ab, ba: how much better A is, by either."""

    question: str
    category: str
    turn: int
    ab: float
    ba: float

    @property
    def won(self) -> float:
        """1, 0.5 or 0 of each order, in the mean."""
        return (_won(self.ab) + _won(self.ba)) / 2

    @property
    def verdict(self) -> int:
        """1, 0, -1: A wins where both orders say so, B likewise, else it is a tie (MT-bench's rule)."""
        return (self.ab > 0 and self.ba > 0) - (self.ab < 0 and self.ba < 0)


@dataclass(frozen=True)
class HumanAgreement:
    """A judge and people on the same turns: the share of equal verdicts, and that of turns where neither
    sees a tie (MT-bench's two setups); people among each other, where several judged a turn."""

    labels: int
    same: Interval
    without_ties: Interval | None
    people: Interval | None


@dataclass(frozen=True)
class PairReport:
    """Shares are of turns, from A's view. arena: Arena-Hard's score, in which a strong verdict counts three
    times. length: phi of length_control.py. orders_agree: turns on which both orders say the same;
    first_preferred: of games with a winner, those won by the answer shown first."""

    a: str
    b: str
    win_rate: Interval
    wins: Share
    ties: Share
    losses: Share
    p: float
    arena: Interval
    length_controlled: Interval
    length: float
    characters: tuple[float, float]
    orders_agree: Share
    first_preferred: Share
    unusable: dict[str, int]
    incomplete: int
    by_category: dict[str, Interval]
    by_turn: dict[str, Interval]
    human: HumanAgreement | None = None
    pairs: tuple[Pair, ...] = field(default=(), repr=False)

    def to_json(self) -> dict[str, Any]:
        shares = ("wins", "ties", "losses", "orders_agree", "first_preferred")
        human = self.human
        return {
            "a": self.a,
            "b": self.b,
            "turns": len(self.pairs),
            **{name: interval_json(getattr(self, name)) for name in ("win_rate", "arena")},
            "length_controlled": {**interval_json(self.length_controlled), "phi": self.length},
            **{name: getattr(self, name).to_json() for name in shares},
            "p": self.p,
            "characters": {"a": self.characters[0], "b": self.characters[1]},
            "unusable": self.unusable,
            "incomplete": self.incomplete,
            "by_category": {key: interval_json(one) for key, one in self.by_category.items()},
            "by_turn": {key: interval_json(one) for key, one in self.by_turn.items()},
            "human": None
            if human is None
            else {
                "labels": human.labels,
                "same": interval_json(human.same),
                "without_ties": None if human.without_ties is None else interval_json(human.without_ties),
                "people": None if human.people is None else interval_json(human.people),
            },
        }


@dataclass(frozen=True)
class RatingReport:
    """Mean ratings from 1 to 10. difference: of A and B on the turns that both have, where there is a B."""

    names: tuple[str, ...]
    ratings: dict[str, Interval]
    by_category: dict[str, dict[str, Interval]]
    by_turn: dict[str, dict[str, Interval]]
    difference: Interval | None
    unusable: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        def shown(rows: Mapping[str, Interval]) -> dict[str, Any]:
            return {key: interval_json(one) for key, one in rows.items()}

        return {
            "ratings": shown(self.ratings),
            "by_category": {name: shown(rows) for name, rows in self.by_category.items()},
            "by_turn": {name: shown(rows) for name, rows in self.by_turn.items()},
            "difference": None if self.difference is None else interval_json(self.difference),
            "unusable": self.unusable,
        }


def pair_report(
    judgements: Sequence[Judgement], ours: Answers, theirs: Answers, labels: Sequence[Label] = ()
) -> PairReport:
    """PomonaError: no turn has a verdict in both orders."""
    games: dict[tuple[str, int], dict[str, Judgement]] = {}
    for one in judgements:
        games.setdefault((one.question, one.turn), {})[one.order] = one
    pairs = [
        Pair(question, game["ab"].category, turn, game["ab"].value, game["ba"].value)
        for (question, turn), game in games.items()
        if game.keys() >= {"ab", "ba"} and not math.isnan(game["ab"].value + game["ba"].value)
    ]
    if not pairs:
        raise _useless("verdict", judgements)
    verdicts = Counter(pair.verdict for pair in pairs)
    lengths = [
        tuple(len(side.turns[pair.question][pair.turn] or "") for side in (ours, theirs)) for pair in pairs
    ]
    controlled, phi = length_controlled(
        [pair.won for pair in pairs],
        [a for a, _ in lengths],
        [b for _, b in lengths],
        [pair.question for pair in pairs],
    )
    decided = [
        one.value * (1 if one.order == "ab" else -1)
        for one in judgements
        if not math.isnan(one.value) and one.value != 0
    ]
    return PairReport(
        ours.name,
        theirs.name,
        _by_question(pairs, lambda pair: (pair.won, 1.0)),
        Share.wilson(verdicts[1], len(pairs)),
        Share.wilson(verdicts[0], len(pairs)),
        Share.wilson(verdicts[-1], len(pairs)),
        sign_test(verdicts[1], verdicts[-1]),
        _by_question(pairs, _arena),
        controlled,
        phi,
        (sum(a for a, _ in lengths) / len(pairs), sum(b for _, b in lengths) / len(pairs)),
        Share.wilson(sum(_won(pair.ab) == _won(pair.ba) for pair in pairs), len(pairs)),
        Share.wilson(sum(value > 0 for value in decided), len(decided)),
        _unusable(judgements),
        len(games) - len(pairs),
        _grouped(pairs, lambda pair: pair.category),
        _grouped(pairs, lambda pair: f"turn {pair.turn + 1}"),
        _human(pairs, labels) if labels else None,
        tuple(pairs),
    )


def rating_report(judgements: Sequence[Judgement], ours: Answers, theirs: Answers | None) -> RatingReport:
    """PomonaError: no rating can be used."""
    sides = {"a": ours.name} if theirs is None else {"a": ours.name, "b": theirs.name}
    usable = [one for one in judgements if not math.isnan(one.value)]
    by_side = {name: [one for one in usable if one.order == side] for side, name in sides.items()}
    if not all(by_side.values()):
        raise _useless("rating", judgements)

    def grouped(key: Callable[[Judgement], str]) -> dict[str, dict[str, Interval]]:
        return {
            name: {
                group: _mean_by_question([one for one in rows if key(one) == group])
                for group in sorted({key(one) for one in rows})
            }
            for name, rows in by_side.items()
        }

    difference = None
    if theirs is not None:
        a, b = ({(one.question, one.turn): one.value for one in rows} for rows in by_side.values())
        shared: dict[str, list[tuple[float, float]]] = {}
        for key in a.keys() & b.keys():
            shared.setdefault(key[0], []).append((a[key], b[key]))
        if shared:
            means = [[sum(side) / len(rows) for side in zip(*rows, strict=True)] for rows in shared.values()]
            difference = paired_difference([one[0] for one in means], [one[1] for one in means])
    return RatingReport(
        tuple(by_side),
        {name: _mean_by_question(rows) for name, rows in by_side.items()},
        grouped(lambda one: one.category),
        grouped(lambda one: f"turn {one.turn + 1}"),
        difference,
        _unusable(judgements),
    )


def read_labels(path: Path, a: str, b: str) -> list[Label]:
    """Verdicts of people, one JSON object a line: `question_id`, `turn` (from 1), `winner`: a, b, tie, or as
    in FastChat's data model_a, model_b. Rows whose `model_a` and `model_b` are other systems are passed over,
    those that name them the other way round are turned."""
    found: list[Label] = []
    line = 0
    try:
        for line, raw in read_lines(path):  # noqa: B007  (told with an error)
            row = parse_line(raw)
            names = (row.get("model_a", a), row.get("model_b", b))
            if names not in ((a, b), (b, a)):
                continue
            winner = str(row.get("winner", ""))
            won = {"a": 1.0, "model_a": 1.0, "b": 0.0, "model_b": 0.0}.get(winner)
            if winner.startswith("tie"):
                won = 0.5
            turn = row.get("turn", 1)
            if won is None or not isinstance(turn, int) or not 1 <= turn <= 100 or "question_id" not in row:
                raise BadRowError("wrong schema", "has no question_id, turn and winner")
            if names != (a, b):
                won = 1.0 - won
            found.append((str(row["question_id"]), turn - 1, won))
    except BadRowError as error:
        raise PomonaError(f"{path}, line {line}: {error}; see docs/judge.md") from error
    except OSError as error:
        raise PomonaError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    if not found:
        raise PomonaError(f"{path}: has no verdict about {a} and {b}; check the names of the models")
    return found


def _human(pairs: Sequence[Pair], labels: Sequence[Label]) -> HumanAgreement | None:
    """Every pair of a judge's and a person's verdict counts once, within the question."""
    said: dict[tuple[str, int], list[float]] = {}
    for question, turn, won in labels:
        said.setdefault((question, turn), []).append(won)
    same: dict[str, list[float]] = {}
    firm: dict[str, list[float]] = {}
    people: dict[str, list[float]] = {}
    for pair in pairs:
        votes = said.get((pair.question, pair.turn), [])
        judged = (pair.verdict + 1) / 2
        for number, vote in enumerate(votes):
            same.setdefault(pair.question, []).append(float(vote == judged))
            if vote != 0.5 and judged != 0.5:
                firm.setdefault(pair.question, []).append(float(vote == judged))
            for other in votes[:number]:
                people.setdefault(pair.question, []).append(float(vote == other))
    if not same:
        raise PomonaError(
            "the labels of people are about none of the judged turns; check question_id and turn"
        )
    return HumanAgreement(
        sum(map(len, same.values())),
        _ratio(same.values()),
        _ratio(firm.values()) if firm else None,
        _ratio(people.values()) if people else None,
    )


def _won(value: float) -> float:
    return 0.5 + ((value > 0) - (value < 0)) / 2


def _arena(pair: Pair) -> tuple[float, float]:
    games = [(_won(value), STRONG if abs(value) == 2 else 1) for value in (pair.ab, pair.ba)]
    return sum(won * weight for won, weight in games), float(sum(weight for _, weight in games))


def _by_question(pairs: Iterable[Pair], value: Callable[[Pair], tuple[float, float]]) -> Interval:
    rows: dict[str, tuple[float, float]] = {}
    for pair in pairs:
        above, below = value(pair)
        before = rows.get(pair.question, (0.0, 0.0))
        rows[pair.question] = (before[0] + above, before[1] + below)
    return ratio_interval([one[0] for one in rows.values()], [one[1] for one in rows.values()])


def _grouped(pairs: Sequence[Pair], key: Callable[[Pair], str]) -> dict[str, Interval]:
    return {
        group: _by_question((pair for pair in pairs if key(pair) == group), lambda pair: (pair.won, 1.0))
        for group in sorted({key(pair) for pair in pairs})
    }


def _mean_by_question(rows: Iterable[Judgement]) -> Interval:
    found: dict[str, list[float]] = {}
    for one in rows:
        found.setdefault(one.question, []).append(one.value)
    return _ratio(found.values())


def _ratio(rows: Iterable[Sequence[float]]) -> Interval:
    rows = list(rows)
    return ratio_interval([sum(row) for row in rows], [float(len(row)) for row in rows])


def _useless(what: str, judgements: Iterable[Judgement]) -> PomonaError:
    reasons = ", ".join(f"{count} x {kind}" for kind, count in _unusable(judgements).items())
    return PomonaError(
        f"the judge gave no {what} that can be used ({reasons}); take a better one, or try --guided"
    )


def _unusable(judgements: Iterable[Judgement]) -> dict[str, int]:
    return dict(Counter(one.problem for one in judgements if one.problem))
