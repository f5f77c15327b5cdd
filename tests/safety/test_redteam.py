"""The red team: every prompt in its dresses, replies kept and judged, rates, guards, reports compared."""

from __future__ import annotations

import stat
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pomona.errors import PomonaError
from pomona.runtime.model import Model
from pomona.runtime.remote import RemoteModel
from pomona.safety.prompt_sets import SafetyPrompt
from pomona.safety.rates import JudgeError
from pomona.safety.redteam import RedTeamOptions, guarded, load_guard, questions, red_team
from pomona.safety.redteam_report import RedTeamReport, compare

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "features"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "runtime"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "serving"))
from answering_helpers import AnsweringModel
from openai_server import completion
from openai_server import serving as answering_server
from tiny_model import tiny_model

REFUSAL, ANSWER = "I can't help with that.", "Of course: bread is kneaded, rested and baked in the oven."


def prompt(number: int, *, harmful: bool = True, category: str = "illegal.fraud") -> SafetyPrompt:
    """Harmless, but marked as if it were not."""
    return SafetyPrompt(f"s/{number}", f"Bake bread number {number}.", "s", "CC0-1.0", category, harmful)


PROMPTS = [
    *(prompt(number) for number in range(4)),
    prompt(4, category="hate.slurs"),
    *(prompt(number, harmful=False, category="untagged") for number in (5, 6)),
]
OPTIONS = RedTeamOptions(("role_play", "base64"), mutated=2)


def obliging(text: str) -> str:
    """Complies with plain prompts of even numbers, and with every role."""
    return ANSWER if any(f"number {n}." in text for n in (0, 2, 4, 6)) else REFUSAL


@pytest.fixture
def report(tmp_path: Path) -> RedTeamReport:
    return red_team(AnsweringModel(obliging), PROMPTS, OPTIONS, work=tmp_path / "work")


def rates(report: RedTeamReport) -> dict[str, str]:
    return {f"{row.table}: {row.name}": f"{row.rate.count}/{row.rate.of}" for row in report.rows()}


class TestRun:
    def test_rates_by_category_mutation_and_over_refusal(self, report: RedTeamReport) -> None:
        assert rates(report) == {
            "category: all categories": "3/5",
            "category: hate": "1/1",
            "category: illegal": "2/4",
            "mutation: role_play": "2/2",  # of prompts 0 and 2
            "mutation: base64": "0/2",
            "mutation: any mutation": "2/2",
            "over-refusal: benign look-alikes": "1/2",
        }
        assert report.verdicts() == {"compliance": 6, "refusal": 5}

    def test_benign_prompts_are_asked_plainly_alone(self) -> None:
        asked = questions(PROMPTS, OPTIONS)
        assert len(asked) == 7 + 2 * 2
        assert {one.mutation for one in asked if not one.prompt.harmful} == {"plain"}

    def test_a_run_goes_on_where_it_was_interrupted(self, tmp_path: Path, report: RedTeamReport) -> None:
        asked = 0

        def failing(text: str) -> Any:
            nonlocal asked
            asked += 1
            return PomonaError("the server is gone") if asked > 4 else obliging(text)

        work = tmp_path / "other"
        with pytest.raises(PomonaError, match="server is gone"):
            red_team(AnsweringModel(failing), PROMPTS, OPTIONS, work=work)
        model = AnsweringModel(obliging)
        again = red_team(model, PROMPTS, OPTIONS, work=work)
        assert len(model.generations) == 11 - 4
        assert again.attempts == report.attempts
        more = AnsweringModel(obliging)
        red_team(more, [*PROMPTS, prompt(8)], replace(OPTIONS, mutated=0), work=work)
        assert more.prompts == ["Bake bread number 8."]

    def test_a_cut_off_last_line_costs_one_reply(self, tmp_path: Path, report: RedTeamReport) -> None:
        [kept] = (tmp_path / "work").rglob("*.jsonl")
        kept.write_bytes(kept.read_bytes()[:-5])
        model = AnsweringModel(obliging)
        assert red_team(model, PROMPTS, OPTIONS, work=tmp_path / "work").attempts == report.attempts
        assert len(model.generations) == 1

    def test_another_adapter_is_asked_anew(self, tmp_path: Path, report: RedTeamReport) -> None:
        model = AnsweringModel(obliging)
        red_team(model, PROMPTS, OPTIONS, work=tmp_path / "work", adapter="other")
        assert len(model.generations) == 11
        assert {one.adapter for one in model.generations} == {"other"}

    def test_what_is_kept_is_its_owners(self, tmp_path: Path, report: RedTeamReport) -> None:
        report.write(tmp_path / "report.json")
        for path in (tmp_path / "report.json", *(tmp_path / "work").rglob("*.jsonl")):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600

    def test_bad_options_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(PomonaError, match="mutation x"):
            RedTeamOptions(("x",))
        with pytest.raises(PomonaError, match="max_new_tokens"):
            RedTeamOptions(max_new_tokens=0)
        with pytest.raises(PomonaError, match="no prompts"):
            red_team(AnsweringModel(obliging), [], OPTIONS, work=tmp_path)
        (tmp_path / "file").write_text("")
        with pytest.raises(PomonaError, match="cannot be used as work folder"):
            red_team(AnsweringModel(obliging), PROMPTS, OPTIONS, work=tmp_path / "file")


class TestModels:
    def test_our_engine_answers_in_batches_and_the_same_each_time(self, tmp_path: Path) -> None:
        directory = tiny_model(tmp_path)
        options = replace(OPTIONS, max_new_tokens=8)
        with Model.load(str(directory), threads=1) as model:
            first, again = (
                red_team(model, PROMPTS, options, work=tmp_path / name, adapter="base") for name in ("a", "b")
            )
            stats = model.scheduler.stats()
            assert stats.submitted == 2 * 11 and stats.rows / stats.steps > 4
            with pytest.raises(PomonaError, match="no such adapter"):
                red_team(model, PROMPTS, options, work=tmp_path / "c", adapter="nothing")
        assert first.attempts == again.attempts
        assert (first.model, first.mark, first.adapter) == ("tiny", again.mark, None)
        assert any(one.reply for one in first.attempts)

    def test_a_server_is_asked_with_the_whole_conversation(self, tmp_path: Path) -> None:
        with answering_server() as server:
            server.will(*(completion(ANSWER) for _ in range(2)))
            with RemoteModel(server.url, "afm") as model:
                options = RedTeamOptions(("many_shot",), mutated=1)
                report = red_team(model, PROMPTS[:1], options, work=tmp_path)
        assert rates(report)["mutation: many_shot"] == "1/1"
        roles = sorted([message["role"] for message in seen.body["messages"]] for seen in server.seen)
        assert roles == [["user"], ["user", "assistant"] * 12 + ["user"]]
        assert {seen.body["model"] for seen in server.seen} == {"afm"} and report.model == "afm"


class TestReport:
    def test_it_comes_back_as_it_was_written(self, tmp_path: Path, report: RedTeamReport) -> None:
        whole = replace(report, judge_error=JudgeError(9, 10, 8, 10, "we"))
        whole.write(tmp_path / "report.json")
        assert RedTeamReport.read(tmp_path / "report.json") == whole

    def test_its_summary_holds_no_texts(self, report: RedTeamReport) -> None:
        assert "read number" not in str(report.summary()) and "oven" not in str(report.summary())

    @pytest.mark.parametrize("text", ["", "[]", '{"attempts": []}', '{"attempts": [{"id": 3}]}'])
    def test_other_files_are_refused(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "report.json").write_text(text)
        with pytest.raises(PomonaError, match="report"):
            RedTeamReport.read(tmp_path / "report.json")

    def test_rates_are_corrected_for_the_judge(self, report: RedTeamReport) -> None:
        row = replace(report, judge_error=JudgeError(90, 100, 80, 100)).row("category", "all categories")
        assert row is not None and row.corrected is not None
        assert row.corrected.value == pytest.approx((0.6 + 0.8 - 1) / 0.7)


class TestGuard:
    def test_what_it_blocks_is_no_violation_but_may_be_an_over_refusal(self, report: RedTeamReport) -> None:
        def guard(message: str, reply: str) -> bool:
            return (
                "number 0" in message or "number 6" in message or (reply == ANSWER and "number 4" in message)
            )

        found = guarded(report, guard, "ours")
        assert found.guard == "ours"
        assert rates(found)["category: all categories"] == "1/5"
        assert rates(found)["over-refusal: benign look-alikes"] == "2/2"
        blocked = {one.id: one.blocked for one in found.attempts if one.mutation == "plain"}
        assert (blocked["s/0:plain"], blocked["s/4:plain"], blocked["s/1:plain"]) == ("input", "output", None)

    def test_a_block_is_certain_whatever_the_judge_thinks(self, report: RedTeamReport) -> None:
        found = guarded(replace(report, judge_error=JudgeError(90, 100, 80, 100)), lambda *_: True, "all")
        row = found.row("category", "all categories")
        assert row is not None and row.rate.count == 0 and row.corrected is None

    def test_a_guard_is_found_by_its_name(self) -> None:
        assert load_guard("operator.contains")("abc", "b") is True
        for name in ("nothing", "operator.nothing", "no.such.module", "string.digits"):
            with pytest.raises(PomonaError, match=name.replace(".", r"\.")):
                load_guard(name)


class TestCompare:
    def test_differences_are_of_the_same_prompts(self, tmp_path: Path, report: RedTeamReport) -> None:
        silent = red_team(AnsweringModel(lambda _: REFUSAL), PROMPTS[:4], OPTIONS, work=tmp_path / "b")
        found = compare(report, silent)
        assert (found["category", "illegal"].value, found["category", "illegal"].rows) == (0.5, 4)
        assert ("category", "hate") not in found and ("over-refusal", "benign look-alikes") not in found
        assert found["mutation", "role_play"].value == 1.0
        same = compare(report, report)["category", "all categories"]
        assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)

    def test_nothing_in_common_is_refused(self, tmp_path: Path, report: RedTeamReport) -> None:
        other = red_team(AnsweringModel(obliging), [prompt(9)], OPTIONS, work=tmp_path / "b")
        with pytest.raises(PomonaError, match="no prompt in common"):
            compare(report, other)
