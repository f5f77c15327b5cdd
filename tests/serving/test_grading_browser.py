"""The grading pages in a real Chromium: two graders, fifty pairs, and what comes out of them.

The graders are scripts with rules, so every figure is known beforehand. Runs on a small random model: the
pages need no other.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from page_steps import Open, begin_grading, new_grading
from scipy import stats
from serving_server import Running, loaded, serving
from tiny_model import tiny_model

from pomona.evaluation.agreement import alpha
from pomona.posttraining.preferences import QUESTIONS, read_preferences

slow = pytest.mark.slow
LEVELS = ("significantly_better", "better", "slightly_better", "negligibly_better")
GRADES = ("poor", "fair", "good")
MARKUP = "<img src=x onerror=\"document.title='gone'\"><b>bold</b>"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("grading")
    with loaded(tiny_model(folder)) as model, serving(model, grading_db=folder / "g.db") as started:
        yield started


def rows(count: int) -> list[dict[str, str]]:
    return [
        {"id": str(i), "prompt": f"Question {i}?", "a": f"alpha {i} says", "b": f"beta {i} says"}
        for i in range(count)
    ]


class Script:
    """A grader with a rule: what it says of a pair depends on the pair's number and its own mind alone."""

    def __init__(self, name: str, seed: int, doubts: float) -> None:
        self.name = name
        chance = random.Random(seed)
        shared = random.Random(7)  # what both see
        self.said: dict[int, dict[str, Any]] = {}
        for number in range(50):
            verdict = shared.choices(("a", "b", "tie"), (5, 3, 2))[0]
            grades = {f"{side}-{q}": shared.choice(GRADES) for side in "ab" for q in QUESTIONS}
            level = shared.choice(LEVELS)
            if chance.random() < doubts:
                verdict = chance.choice(("a", "b", "tie"))
                grades = {key: chance.choice(GRADES) for key in grades}
                level = chance.choice(LEVELS)
            self.said[number] = {"verdict": verdict, "level": level, **grades}

    def grade(self, page: Any) -> int:
        """The pair that the page shows, by keys and clicks."""
        left = page.locator("#left").inner_text()
        number = int(left.split()[1])
        said = self.said[number]
        places = {"a": "left", "b": "right"} if left.startswith("alpha") else {"a": "right", "b": "left"}
        for side, place in places.items():
            for question in QUESTIONS:
                page.locator(f"#{place}-{question}-{said[f'{side}-{question}']}").check()
        if said["verdict"] == "tie":
            page.keyboard.press("0")
        else:
            page.keyboard.press("1" if places[said["verdict"]] == "left" else "2")
            page.locator(f"#level-{said['level']}").check()
        return number

    def grade_all(self, page: Any, count: int) -> list[int]:
        order = []
        for done in range(count):
            page.locator("#status", has_text=f"{done} done").wait_for()
            order.append(self.grade(page))
            page.get_by_role("button", name="Save and go on").click()
        page.locator("#status", has_text="Nothing is left").wait_for()
        return order


def majority(numbers: range, graders: list[Script]) -> dict[int, str]:
    found = {}
    for number in numbers:
        verdicts = [one.said[number]["verdict"] for one in graders]
        found[number] = verdicts[0] if verdicts[0] == verdicts[1] else "tie"
    return found


def grade_and_check(visit: Open, running: Running, folder: Path, count: int) -> None:
    name = f"{count} pairs"
    admin = visit(f"{running.url}/gradings")
    new_grading(admin, name, rows(count), overlap=2)
    graders = [Script("Anna", 1, 0.15), Script("Ben", 2, 0.3)]
    label = f"{name} (items: {count})"
    orders = []
    for grader in graders:
        page = visit(f"{running.url}/grade")
        begin_grading(page, grader.name, label)
        assert "bits" not in page.locator("main").inner_text()  # the names of the sides
        orders.append(grader.grade_all(page, count))
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(count)) and orders[0] != orders[1]

    # The page's figures, against the rules of the graders and SciPy.
    admin.locator("#read").click()
    admin.locator("#facts", has_text=f"gradings: {2 * count};").wait_for()
    project = admin.locator("#projects").input_value()
    report = admin.request.get(f"{running.url}/v1/grading/projects/{project}/results").json()["report"]
    verdicts = majority(range(count), graders)
    wins, losses = (sum(one == side for one in verdicts.values()) for side in "ab")
    assert (report["wins"]["count"], report["losses"]["count"], report["wins"]["of"]) == (wins, losses, count)
    interval = stats.binomtest(wins, count).proportion_ci(method="wilson")
    assert (report["wins"]["low"], report["wins"]["high"]) == (
        pytest.approx(interval.low), pytest.approx(interval.high),
    )  # fmt: skip
    assert report["p"] == pytest.approx(stats.binomtest(wins, wins + losses).pvalue if wins + losses else 1.0)
    shown = admin.locator("#shares").inner_text()
    assert f"{wins} of {count}" in shown
    units = [[one.said[number]["verdict"] for one in graders] for number in range(count)]
    preference = alpha(units, "nominal").value
    assert report["agreement"]["preference"]["value"] == pytest.approx(preference, nan_ok=True)
    table = admin.locator("#tables table", has_text="Krippendorff")
    assert f"{preference:.2f}" in table.locator("tr", has_text="preference").inner_text()
    truth = [
        [one.said[number][f"{side}-truthfulness"] for one in graders]
        for number in range(count)
        for side in "ab"
    ]
    assert report["agreement"]["truthfulness"]["value"] == pytest.approx(
        alpha(truth, "ordinal", GRADES).value, nan_ok=True
    )

    # The export, as the reward model's reader sees it.
    with admin.expect_download() as waiting:
        admin.get_by_role("button", name="Export preferences").click()
    path = folder / "preferences.jsonl"
    waiting.value.save_as(path)
    read, problems = read_preferences(path, contradictions="refuse")
    assert problems.problems == []
    decided = {row.prompt[0]["content"]: row for row in read if row.rejected is not None}
    assert len(decided) == wins + losses
    for number, verdict in verdicts.items():
        if verdict == "tie":
            continue
        row = decided[f"Question {number}?"]
        assert row.chosen.text.startswith("alpha" if verdict == "a" else "beta")
        strengths = [LEVELS.index(one.said[number]["level"]) for one in graders]
        assert row.level == LEVELS[max(strengths)]
        grades = [GRADES.index(one.said[number][f"{verdict}-conciseness"]) for one in graders]
        assert row.chosen.gradings["conciseness"] == GRADES[min(grades)]
    with admin.expect_download() as waiting:
        admin.get_by_role("button", name="Export all gradings").click()
    waiting.value.save_as(folder / "gradings.jsonl")
    lines = [json.loads(line) for line in (folder / "gradings.jsonl").read_text().splitlines()]
    assert len(lines) == 2 * count
    for line in lines:
        own = next(one for one in graders if one.name == line["grader"]).said[int(line["question_id"])]
        assert line["winner"] == own["verdict"]
        assert line["gradings"]["a"] == {question: own[f"a-{question}"] for question in QUESTIONS}


def test_two_graders_grade_a_few_pairs(visit: Open, running: Running, tmp_path: Path) -> None:
    grade_and_check(visit, running, tmp_path, 4)


@slow
def test_two_graders_grade_fifty_pairs(visit: Open, running: Running, tmp_path: Path) -> None:
    grade_and_check(visit, running, tmp_path, 50)


def test_what_is_missing_is_asked_for_and_what_was_said_can_be_corrected(
    visit: Open, running: Running
) -> None:
    admin = visit(f"{running.url}/gradings")
    new_grading(admin, "corrected", [*rows(1), {"id": "m", "prompt": MARKUP, "a": MARKUP, "b": "plain"}])
    page = visit(f"{running.url}/grade?project={admin.locator('#projects').input_value()}")
    begin_grading(page, "Anna")
    save = page.get_by_role("button", name="Save and go on")
    save.click()
    page.locator("#error", has_text="which one is better").wait_for()
    page.keyboard.press("1")
    save.click()
    page.locator("#error", has_text="by how much").wait_for()
    page.keyboard.press("0")
    assert page.locator("#level-better").is_disabled()
    first, texts = page.locator("#left").inner_text(), page.locator("#answers").inner_text()
    save.click()
    page.locator("#status", has_text="1 done").wait_for()
    page.locator("#back").click()
    assert page.locator("#left").inner_text() == first and page.locator("#verdict-tie").is_checked()
    page.keyboard.press("2")
    page.locator("#level-better").check()
    save.click()
    page.locator("#back:not([disabled])").wait_for()
    texts += page.locator("#answers").inner_text()  # of both items, in whatever order they came
    assert page.locator("main img, main b").count() == 0 and page.title() != "gone"
    assert "<b>bold</b>" in texts
    page.get_by_role("button", name="Skip").click()
    page.locator("#status", has_text="Nothing is left").wait_for()
    admin.locator("#read").click()
    admin.locator("#facts", has_text="gradings: 1;").wait_for()


def test_a_summary_is_graded_in_five_dimensions(visit: Open, running: Running) -> None:
    admin = visit(f"{running.url}/gradings")
    admin.locator("#projects option").first.wait_for(state="attached")
    if admin.locator("#new").get_attribute("open") is None:
        admin.locator("#new summary").click()
    admin.locator("#name").fill("mails")
    admin.locator("#kind").select_option("summaries")
    assert admin.locator("#a").is_hidden()
    admin.get_by_role("button", name="Begin").click()
    admin.locator("#project").wait_for()
    item = {"prompt": "A long mail.", "response": "A mail.", "system": "4 bits"}
    file = {"name": "s.jsonl", "mimeType": "application/jsonl", "buffer": json.dumps(item).encode()}
    admin.locator("#file").set_input_files(file)
    admin.locator("#add").click()
    admin.locator("#status", has_text="Added: 1.").wait_for()
    page = visit(f"{running.url}/grade?project={admin.locator('#projects').input_value()}")
    begin_grading(page, "Ben")
    for name in ("composition", "comprehensiveness", "groundedness", "following_instructions"):
        page.locator(f"#{name}-good").check()
    page.get_by_role("button", name="Save and go on").click()
    page.locator("#error", has_text="all five").wait_for()
    page.locator("#harmfulness-neutral").check()
    page.get_by_role("button", name="Save and go on").click()
    page.locator("#status", has_text="Nothing is left").wait_for()
    admin.locator("#read").click()
    row = admin.locator("#tables tr", has_text="overall").first
    row.wait_for()
    cells = row.locator("td").all_inner_texts()
    assert cells[0] == "overall" and cells[1].startswith("0%") and cells[2].startswith("100%")
    assert admin.locator("#export-preferences").is_hidden()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_fault_while_one_grades(visit: Open, running: Running, scheme: str) -> None:
    given = os.environ.get("POMONA_AXE")
    source = Path(given) if given else Path("node_modules/axe-core/axe.min.js")
    if not source.is_file():
        pytest.skip(
            "axe-core is not there; npm install --no-save axe-core, or set POMONA_AXE to its axe.min.js"
        )
    admin = visit(f"{running.url}/gradings", color_scheme=scheme, bypass_csp=True)
    new_grading(admin, f"axe {scheme}", rows(2))
    project = admin.locator("#projects").input_value()
    page = visit(f"{running.url}/grade?project={project}", color_scheme=scheme, bypass_csp=True)
    begin_grading(page, "Cleo")
    Script("Cleo", 3, 0.0).grade(page)
    before = faults(page, source)
    page.get_by_role("button", name="Save and go on").click()
    page.locator("#status", has_text="1 done").wait_for()
    admin.locator("#read").click()
    admin.locator("#tables table").first.wait_for()
    assert before == [] and faults(admin, source) == []


def faults(page: Any, source: Path) -> list[Any]:
    page.evaluate(source.read_text(encoding="utf-8"))
    found = page.evaluate("axe.run(document).then((r) => r.violations)")
    return [
        (fault["id"], [node["html"][:160] for node in fault["nodes"]][:4])
        for fault in found
        if fault["impact"] in ("serious", "critical")
    ]
