"""`pomona judge`: answers judged by a model, MT-bench's and Arena-Hard's way.

pomona judge smollm2-135m-4bit --against smollm2-135m --judge http://127.0.0.1:8000/v1#judge
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from pomona.cli.common import (
    JsonOption,
    ProgressReporter,
    ThreadsOption,
    examples,
    new_app,
    note,
    print_json,
    print_pairs,
    print_table,
)
from pomona.errors import PomonaError

if TYPE_CHECKING:
    from pomona.adapters.metrics import Interval
    from pomona.evaluation.asking import Sources
    from pomona.evaluation.judge import Progress
    from pomona.evaluation.judge_prompts import JudgePrompts
    from pomona.evaluation.judge_questions import Answers, Question
    from pomona.evaluation.judge_report import PairReport, RatingReport
    from pomona.evaluation.statistics import Share

app = new_app()


@app.command(
    epilog=examples(
        "pomona judge smollm2-135m-4bit --against smollm2-135m --judge http://127.0.0.1:8000/v1#judge",
        "pomona judge smollm2-135m-4bit --protocol single --judge http://127.0.0.1:8000/v1#judge --limit 20",
        "pomona judge ours.jsonl --against baseline.jsonl --questions arena-hard.jsonl --protocol arena "
        "--judge http://127.0.0.1:8000/v1#judge --out result.json",
    )
)
def judge(
    answers: Annotated[
        str,
        typer.Argument(
            metavar="ANSWERS",
            help="A model (NAME or NAME:ADAPTER), an endpoint (http://HOST/v1#MODEL), or answers (.jsonl).",
            show_default=False,
        ),
    ],
    judge: Annotated[
        str, typer.Option("--judge", metavar="SOURCE", help="Who judges: an endpoint or a model.")
    ],
    against: Annotated[
        str | None,
        typer.Option("--against", metavar="ANSWERS", help="The other side of a pair.", show_default=False),
    ] = None,
    protocol: Annotated[
        Literal["pair", "arena", "single"],
        typer.Option("--protocol", help="MT-bench's pairs, Arena-Hard's five steps, or ratings of 1 to 10."),
    ] = "pair",
    questions: Annotated[
        str, typer.Option("--questions", metavar="FILE", help="mt_bench, or a .jsonl file.")
    ] = "mt_bench",
    prompts: Annotated[
        Path | None,
        typer.Option(
            "--prompts", metavar="FILE", help="FastChat's judge_prompts.jsonl.", show_default="our own words"
        ),
    ] = None,
    guided: Annotated[
        bool, typer.Option("--guided", help="The judge may say nothing but a verdict: for small judges.")
    ] = False,
    human: Annotated[
        Path | None,
        typer.Option(
            "--human", metavar="FILE", help="Verdicts of people, to agree with.", show_default=False
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Questions, evenly chosen.", show_default="all")
    ] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="Longest answer.")] = 1024,
    judge_tokens: Annotated[
        int, typer.Option("--judge-tokens", min=1, help="Longest reply of the judge.")
    ] = 1024,
    at_once: Annotated[int, typer.Option("--at-once", min=1, max=256, help="Requests on their way.")] = 16,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="The result with every reply.", show_default=False),
    ] = None,
    answers_out: Annotated[
        Path | None,
        typer.Option("--answers-out", metavar="DIR", help="Answers in FastChat's form.", show_default=False),
    ] = None,
    pairs: Annotated[
        Path | None,
        typer.Option("--pairs", metavar="FILE", help="Pairs for people to grade.", show_default=False),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="DIR", help="Public data sets.", show_default="POMONA_DATA"),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget the replies that were kept.")] = False,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Judge answers by a model at any OpenAI-compatible endpoint."""
    if against is None and protocol != "single":
        raise PomonaError(f"--protocol {protocol}: needs two sides; name the other one with --against")
    if against is None and pairs is not None:
        raise PomonaError("--pairs: needs two sides; name the other one with --against")
    if protocol == "single" and human is not None:
        raise PomonaError("--human: holds verdicts about pairs; leave it out, or choose --protocol pair")

    import shutil

    from pomona.evaluation.asking import Sources
    from pomona.evaluation.judge_prompts import JudgePrompts, read_prompts
    from pomona.models.store import cache_dir

    asked = _questions(questions, data, limit)
    wording = JudgePrompts() if prompts is None else read_prompts(prompts)
    keep = cache_dir() / "judge"
    if fresh:
        shutil.rmtree(keep, ignore_errors=True)
    with Sources(keep=keep, threads=threads, together=at_once) as sources, ProgressReporter() as progress:
        run = _Run(sources, asked, wording, guided, protocol, (max_tokens, judge_tokens), progress.update)
        result = asyncio.run(
            run.all(answers, against, judge, human, answered=lambda: _write_answers(run, answers_out, pairs))
        )
    result |= {
        "protocol": protocol,
        "prompts": wording.digest,
        "guided": guided,
        "questions": len(asked),
        "judge": run.judge_name,
    }
    if out is not None:
        _write_result(out, {**result, "judgements": [one.to_json() for one in run.judgements]})
    if as_json:
        print_json(result)
        return
    _show(run.report, result)


class _Run:
    """Answers, verdicts and the report, in one event loop."""

    def __init__(
        self,
        sources: Sources,
        questions: list[Question],
        prompts: JudgePrompts,
        guided: bool,
        protocol: Literal["pair", "arena", "single"],
        tokens: tuple[int, int],
        progress: Progress,
    ) -> None:
        self.sources, self.questions, self.prompts, self.guided = sources, questions, prompts, guided
        self.protocol, self.tokens, self.progress = protocol, tokens, progress
        self.sides: list[Answers] = []
        self.judgements: list[Any] = []
        self.judge_name = ""
        self.report: PairReport | RatingReport

    async def all(
        self, ours: str, theirs: str | None, judge: str, human: Path | None, answered: Callable[[], None]
    ) -> dict[str, Any]:
        """answered: called before the judge is asked, who may fail."""
        from pomona.evaluation.judge import judge_pairs, rate
        from pomona.evaluation.judge_report import pair_report, rating_report, read_labels

        self.sides = [await self._answers(source) for source in (ours, theirs) if source is not None]
        if len({side.name for side in self.sides}) < len(self.sides):
            self.sides = [
                replace(side, name=f"{side.name} ({n})") for side, n in zip(self.sides, "AB", strict=True)
            ]
        answered()
        asker = self.sources.open(judge, tokens=self.tokens[1])
        self.judge_name = asker.name
        options: dict[str, Any] = {
            "prompts": self.prompts,
            "guided": self.guided,
            "progress": self.progress,
        }
        a, b = self.sides[0], self.sides[1] if theirs is not None else None
        if self.protocol == "single" or b is None:
            self.judgements = await rate(asker, self.questions, a, side="a", **options)
            if b is not None:
                self.judgements += await rate(asker, self.questions, b, side="b", **options)
            self.report = rating_report(self.judgements, a, b)
        else:
            labels = [] if human is None else read_labels(human, a.name, b.name)
            self.judgements = await judge_pairs(
                asker, self.questions, a, b, protocol=self.protocol, **options
            )
            self.report = pair_report(self.judgements, a, b, labels)
        return {**self.report.to_json(), "asked": asker.asked, "kept": asker.kept}

    async def _answers(self, source: str) -> Answers:
        from pomona.evaluation.judge import answer_questions
        from pomona.evaluation.judge_questions import read_answers

        if source.endswith(".jsonl"):
            return read_answers(Path(source))
        asker = self.sources.open(source, tokens=self.tokens[0])
        return await answer_questions(asker, self.questions, progress=self.progress)


def _questions(name: str, data: Path | None, limit: int | None) -> list[Question]:
    from pomona.data.public_sets import data_folder
    from pomona.evaluation.judge_questions import mt_bench, read_questions

    found = mt_bench(data_folder(data)) if name == "mt_bench" else read_questions(Path(name))
    if limit is None or limit >= len(found):
        return found
    return [found[index * len(found) // limit] for index in range(limit)]


def _write_answers(run: _Run, answers_out: Path | None, pairs: Path | None) -> None:
    from pomona.adapters.recipes.rows import write_jsonl
    from pomona.evaluation.judge_questions import write_answers

    if answers_out is not None:
        answers_out.mkdir(parents=True, exist_ok=True)
        for side in run.sides:
            write_answers(answers_out / f"{side.name.replace('/', '_').replace(':', '_')}.jsonl", side)
    if pairs is not None:
        a, b = run.sides
        rows = [
            {"id": question.id, "prompt": question.turns[0], "a": a.of(question, 0), "b": b.of(question, 0)}
            for question in run.questions
        ]
        write_jsonl(pairs, (row for row in rows if row["a"] and row["b"]))


def _write_result(out: Path, result: dict[str, Any]) -> None:
    """The file appears whole or not at all."""
    from pomona.models.model_directory import write_json

    beside = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        write_json(beside, result)
        beside.replace(out)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise PomonaError(f"{out}: cannot be written ({error.strerror}); check the path") from error


def _show(report: PairReport | RatingReport, result: dict[str, Any]) -> None:
    from pomona.evaluation.judge_report import PairReport

    if not isinstance(report, PairReport):
        rows = [("all", report.ratings), *_columns(report.by_turn), *_columns(report.by_category)]
        print_table(
            ["rating, 1 to 10", *report.names],
            [
                [name, *(_number(row[one]) if one in row else "" for one in report.names)]
                for name, row in rows
            ],
        )
        if report.difference is not None:
            print(f"A minus B: {_number(report.difference, '+')}")
    else:
        print_pairs(
            [
                ("A", f"{report.a}, {report.characters[0]:.0f} characters in the mean"),
                ("B", f"{report.b}, {report.characters[1]:.0f} characters"),
                ("win rate of A", _percent(report.win_rate)),
                ("of equal length", f"{_percent(report.length_controlled)}, phi {report.length:+.2f}"),
                *(
                    [("strong counted thrice", _percent(report.arena))]
                    if result["protocol"] == "arena"
                    else []
                ),
                ("A wins in both orders", _share(report.wins)),
                ("tie, or orders differ", _share(report.ties)),
                ("B wins in both orders", _share(report.losses)),
                ("sign test", f"p = {report.p:.3g}"),
                ("both orders agree", _share(report.orders_agree)),
                ("first one preferred", _share(report.first_preferred)),
            ]
        )
        if report.human is not None:
            people = report.human
            firm = "" if people.without_ties is None else f", without ties {_percent(people.without_ties)}"
            print(f"agrees with people: {_percent(people.same)}{firm} ({people.labels} verdicts)")
        rows_of = [*report.by_turn.items(), *report.by_category.items()]
        print_table(["win rate of A", "value"], [[name or "-", _percent(one)] for name, one in rows_of])
    if report.unusable:
        reasons = ", ".join(f"{count} x {kind}" for kind, count in report.unusable.items())
        note(f"replies of the judge that could not be used: {reasons}")
    note(f"judge: {result['judge']}, {result['asked']} replies asked for, {result['kept']} kept")


def _columns(rows: dict[str, dict[str, Interval]]) -> list[tuple[str, dict[str, Interval]]]:
    """System -> group -> value as group -> system -> value."""
    groups = sorted({group for row in rows.values() for group in row})
    return [
        (group or "-", {name: row[group] for name, row in rows.items() if group in row}) for group in groups
    ]


def _number(one: Interval, sign: str = "") -> str:
    return f"{one.value:{sign}.2f} ({one.low:{sign}.2f} .. {one.high:{sign}.2f})"


def _percent(one: Interval) -> str:
    return f"{100 * one.value:.1f}% ({100 * one.low:.1f} .. {100 * one.high:.1f})"


def _share(one: Share) -> str:
    value = 0.0 if one.value is None else one.value
    return f"{one.count} of {one.of}: {100 * value:.1f}% ({100 * one.low:.1f} .. {100 * one.high:.1f})"
