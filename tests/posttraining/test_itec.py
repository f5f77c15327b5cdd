"""Rounds of the committee on a tiny model: what they leave behind, and that they go on where they stopped."""

from __future__ import annotations

import json
import math
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mdloo_samples import OPTIONS, adapter_bytes, tiny_model

from pomona.errors import PomonaError
from pomona.posttraining import itec as itec_module
from pomona.posttraining.committee import (
    Answer,
    Member,
    best_per_prompt,
    mixed_jobs,
    next_committee,
    pairs_to_judge,
    preference_pairs,
)
from pomona.posttraining.itec import ItecOptions, PickOptions, WaitingForPreferences, itec
from pomona.posttraining.itec_report import round_page
from pomona.posttraining.prompts import Prompt

ROUND_OPTIONS = ItecOptions(
    techniques=("rs", "mdloo"),
    committee=3,
    samples=2,
    held_out=3,
    max_new_tokens=16,
    picks=PickOptions(rank=4, lr=5e-3, epochs=2, batch=4),
    mdloo=OPTIONS.with_changes(iterations=1),
)
FILES = {
    "responses.jsonl", "to_judge.jsonl", "scores.json", "picks.jsonl", "pairs.jsonl", "member-rs.json",
    "member-mdloo.json", "committee.json", "report.html",
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("plain") / "tiny")


def some_prompts(count: int = 11) -> list[Prompt]:
    checks = ({"check": "letter_count", "letter": "a", "count": 1}, {"check": "words", "count": 3})
    return [Prompt(({"role": "user", "content": f"Say {number}"},), checks) for number in range(count)]


@pytest.fixture
def run(base: Path, tmp_path: Path) -> Callable[..., Any]:
    def call(*, work: str = "work", options: ItecOptions = ROUND_OPTIONS, **more: Any) -> dict[str, Any]:
        return itec(base, some_prompts(), "verify", work=tmp_path / work, options=options, threads=1, **more)

    return call


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# --- choosing


ANSWERS = [
    Answer(0, "a", "first", 0.2),
    Answer(0, "b", "second", 0.9),
    Answer(0, "b", "third", 0.9),
    Answer(1, "a", "best", 0.7),
    Answer(1, "b", "unscored", math.nan),
    Answer(2, "a", "  ", 5.0),
    Answer(2, "b", "low", 0.1),
    Answer(3, "a", "lost", math.nan),
    Answer(4, "a", "same", 0.5),
    Answer(4, "b", "same", 0.4),
]


def test_the_best_is_chosen_per_prompt_and_not_one_member_for_all() -> None:
    best = best_per_prompt(ANSWERS)
    assert {prompt: answer.text for prompt, answer in best.items()} == {
        0: "second", 1: "best", 2: "low", 4: "same",
    }  # fmt: skip
    assert {answer.member for answer in best.values()} == {"a", "b"}
    assert sorted(best_per_prompt(ANSWERS, least=0.6)) == [0, 1]


def test_pairs_are_of_different_texts_and_rewards() -> None:
    assert [(p, good.text, bad.text) for p, good, bad in preference_pairs(ANSWERS)] == [
        (0, "second", "first")
    ]


def test_people_see_two_members_without_their_names() -> None:
    pairs = pairs_to_judge(ANSWERS, some_prompts(), 10)
    assert [(row["a"], row["b"]) for row in pairs] == [("first", "second"), ("unscored", "best")]
    assert all(set(row) == {"prompt", "a", "b"} for row in pairs)
    assert len(pairs_to_judge(ANSWERS, some_prompts(), 1)) == 1


def test_the_next_committee_holds_the_best_and_among_equals_the_newest() -> None:
    members = [
        Member("old", "start", 0, None, 0.5),
        Member("new", "rs", 1, "x", 0.5),
        Member("bad", "dpo", 1, "x", 0.1),
        Member("unknown", "ipo", 1, "x", None),
    ]
    assert [member.name for member in next_committee(members, 3)] == ["new", "old", "bad"]


def test_jobs_of_all_members_stand_in_one_batch() -> None:
    members = [Member("start", "start", 0, None), Member("one", "rs", 1, "x")]
    jobs = mixed_jobs(members, [[1, 2], [3]], 2, first_key=100)
    assert [(job.adapter, job.prompt_ids, job.key) for job in jobs] == [
        (None, (1, 2), 100), ("one", (1, 2), 100), (None, (3,), 101), ("one", (3,), 101),
    ]  # fmt: skip


# --- rounds


def test_two_rounds_leave_members_picks_and_a_page(run: Callable[..., Any], tmp_path: Path) -> None:
    told: list[tuple[int, str]] = []
    state = run(rounds=2, on_step=lambda number, step, what: told.append((number, step)))
    assert state["rounds"] == 2 and len(state["committee"]) == 3
    steps = ["sample", "score", "pick", "train", "train", "evaluate", "report"]
    assert told == [(number, step) for number in (1, 2) for step in steps]
    first, second = tmp_path / "work" / "round-01", tmp_path / "work" / "round-02"
    assert {path.name for path in first.iterdir()} >= FILES
    assert len(rows(first / "responses.jsonl")) == 8 * 1 * 2  # the base alone
    members = {row["member"] for row in rows(second / "responses.jsonl")}
    assert len(members) >= 2 and len(rows(second / "responses.jsonl")) == 8 * len(members) * 2
    picks = rows(first / "picks.jsonl")
    assert picks and all(row["messages"][-1]["role"] == "assistant" for row in picks)
    evaluated = json.loads((second / "committee.json").read_text())
    measured = evaluated["measured"]
    for member in measured:
        assert member["reward"] == pytest.approx(statistics.mean(evaluated["by_prompt"][member["name"]]))
    assert all(0 <= member["reward"] <= 1 for member in measured)
    assert {member["technique"] for member in measured} >= {"start", "mdloo"}
    page = (second / "report.html").read_text()
    assert "<script" not in page and "http" not in page and "held-out reward" in page
    assert state["committee"][0]["reward"] == max(member["reward"] for member in measured)


@pytest.mark.parametrize("step", ["_scored", "_trained", "_evaluated"])
def test_an_interrupted_round_goes_on_with_the_same_result(
    run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    whole = run(work="whole")

    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(itec_module.Round, step, interrupted)
        with pytest.raises(KeyboardInterrupt):
            run()
    done = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "work" / "round-01").glob("*.json*")}
    state = run()
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "work" / "round-01").glob("*.json*")}
    assert {name: after[name] for name in done} == done  # what was done is not done again
    assert [(m["name"], m["reward"]) for m in state["committee"]] == [
        (m["name"], m["reward"]) for m in whole["committee"]
    ]


CHILD = """
import sys
sys.path.insert(0, {here!r})
from pathlib import Path
from test_itec import ROUND_OPTIONS, some_prompts
from pomona.posttraining.itec import itec
itec(Path({base!r}), some_prompts(), "verify", work=Path({work!r}), options=ROUND_OPTIONS, threads=1,
     on_step=lambda number, step, what: print(step, flush=True))
"""


@pytest.mark.slow
@pytest.mark.parametrize("steps", [0, 1, 3, 4, 5])
def test_a_killed_round_goes_on_with_the_same_result(
    run: Callable[..., Any], base: Path, tmp_path: Path, steps: int
) -> None:
    """SIGKILL behind so many steps: while members sample, learn or are judged."""
    whole = run(work="whole")
    work = tmp_path / "killed"
    code = CHILD.format(here=str(Path(__file__).parent), base=str(base), work=str(work))
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        for _ in range(steps):
            assert child.stdout.readline()
        while not list(work.glob("round-01/*")):  # imports take their time
            time.sleep(0.01)
        if steps < 5:  # judging is over sooner
            time.sleep(0.05)
        child.kill()
        assert child.wait() == -signal.SIGKILL
    assert json.loads((work / "itec.json").read_text())["rounds"] == 0
    state = run(work="killed")
    assert state["rounds"] == 1
    for ours, theirs in zip(state["committee"], whole["committee"], strict=True):
        assert (ours["name"], ours["reward"]) == (theirs["name"], theirs["reward"])
        if ours["round"]:
            assert adapter_bytes(ours["directory"]) == adapter_bytes(theirs["directory"])


def test_preferences_go_out_and_come_back(run: Callable[..., Any], tmp_path: Path, base: Path) -> None:
    options = ROUND_OPTIONS.with_changes(wait=True, techniques=("mdloo",))
    with pytest.raises(WaitingForPreferences) as waiting:
        run(options=options)
    assert waiting.value.path.name == "to_judge.jsonl"
    judged = tmp_path / "judged.jsonl"
    prompt = [{"role": "user", "content": "Say 9"}]
    good = {"prompt": prompt, "chosen": "nine", "rejected": "ten", "level": "better"}
    opposite = {"prompt": prompt, "chosen": "x", "rejected": "y"}
    lines = [good, opposite, {**opposite, "chosen": "y", "rejected": "x"}, {"prompt": prompt, "chosen": "z"}]
    judged.write_text("".join(json.dumps(row) + "\n" for row in lines))
    told: list[str] = []
    state = run(options=options, preferences=judged, on_step=lambda n, step, what: told.append(what))
    assert state["rounds"] == 1 and told[0] == "1 preferences came back, 3 were unsound"
    pairs = rows(tmp_path / "work" / "round-01" / "pairs.jsonl")
    assert sum(row["chosen"] == "nine" for row in pairs) == 1


def test_a_folder_belongs_to_its_base_and_prompts(
    run: Callable[..., Any], base: Path, tmp_path: Path
) -> None:
    with pytest.raises(PomonaError, match="held out"):
        run(options=ROUND_OPTIONS.with_changes(held_out=11))
    (tmp_path / "work").mkdir(exist_ok=True)
    (tmp_path / "work" / "itec.json").write_text('{"base": "another", "prompts": "others"}')
    with pytest.raises(PomonaError, match="another base"):
        run()


@pytest.mark.parametrize("given", [("start", "x"), ("bad name", "x"), ("fine", "x")])
def test_members_that_are_none_are_refused(
    run: Callable[..., Any], given: tuple[str, str], tmp_path: Path
) -> None:
    with pytest.raises(PomonaError, match=r"member|adapter"):
        run(members=[(given[0], tmp_path / given[1])])


def test_the_page_shows_hostile_text_as_text() -> None:
    nasty = "<script>alert(1)</script>"
    prompts = [Prompt(({"role": "user", "content": nasty},))]
    answers = [Answer(0, "a", nasty, 1.0), Answer(0, "a", "other", math.nan)]
    members = [Member("a", nasty, 0, None, 0.5), Member("b", "rs", 1, None)]
    page = round_page(
        1,
        prompts,
        answers,
        members,
        {"a": [0.25, None, 0.75], "b": [None]},
        ["a"],
        [{"name": nasty, "note": nasty}],
        nasty,
        {nasty: 1},
    )
    assert "<script" not in page and "&lt;script&gt;" in page
    assert ">0.250 .. 0.750</td>" in page  # the interval of what was judged


@pytest.mark.slow
def test_all_techniques_make_members(run: Callable[..., Any], tmp_path: Path) -> None:
    options = ROUND_OPTIONS.with_changes(techniques=("rs", "dpo", "ipo", "mdloo"), committee=5)
    state = run(rounds=2, options=options)
    assert state["rounds"] == 2 and len(state["committee"]) == 5
    for number in (1, 2):
        measured = json.loads((tmp_path / "work" / f"round-0{number}" / "committee.json").read_text())[
            "measured"
        ]
        new = {member["technique"] for member in measured if member["round"] == number}
        assert {"dpo", "ipo", "mdloo"} <= new  # rs makes none where its loss does not fall
