"""Steps that recur in the tests of the pages."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from pomona.adapters.edits import text_edits

PAGES = ("/", "/write", "/chat", "/adapters", "/compression", "/compare", "/grade", "/gradings")
MAIL = (
    "Hi Ben,\n\nthe meeting on Monday has to move, becuase Clara are away until Wednesday. Can you come on "
    "Thursday at 14:00 insted? We need the figures of the last month, and the list of the guests.\n\nAnna"
)
WAIT = 120_000  # milliseconds, for an answer on a busy machine

Open = Callable[..., Any]


def done(page: Any) -> None:
    page.locator("#status", has_text="Done.").wait_for(timeout=WAIT)


def copied(page: Any) -> str:
    return str(page.evaluate("navigator.clipboard.readText()"))


def lines(*events: tuple[str, Any]) -> str:
    return "".join(f"event: {name}\ndata: {json.dumps(data)}\n\n" for name, data in events)


def answer_with(page: Any, pattern: str, body: str) -> None:
    """A reply in the place of the server's: what a model might say, if it were asked to."""
    page.route(
        re.compile(pattern),
        lambda route: route.fulfill(status=200, content_type="text/event-stream", body=body),
    )


def corrected(text: str) -> str:
    """What a model that proofreads well makes of MAIL, as the stream of a reply."""
    better = text.replace("becuase", "because").replace("are away", "is away").replace("insted", "instead")
    result = {
        "text": better,
        "edits": [asdict(edit) for edit in text_edits(text, better)],
        "origin": {"model": "a good one", "adapter": "proofread", "requests": 1},
        "usage": {"completion_tokens": 1},
        "timings": {"seconds": 1.0, "tokens_per_second": 1.0},
    }
    return lines(("progress", {"batch": 0, "done": 0, "requests": 1}), ("result", result))


def page_text(page: Any, place: str) -> str:
    page.locator(place).wait_for()
    return str(page.locator(place).inner_text())


def new_comparison(page: Any, name: str) -> None:
    page.locator("#sessions option").first.wait_for(state="attached")
    if page.locator("#new").get_attribute("open") is None:
        page.locator("#new summary").click()
    page.locator("#name").fill(name)
    page.locator("#b-adapter").select_option("base")
    for side in "ab":
        page.locator(f"#{side}-max_tokens").fill("24")
    page.locator("#begin").click()
    page.locator("#session").wait_for()


GRADED = {
    "id": "1",
    "prompt": "Name three fruits that grow in cold countries.",
    "a": "Apples, pears and plums. All three need a cold winter before they flower.",
    "b": "Many fruits grow in cold countries. Fruits are healthy and should be eaten every day.",
}
QUESTIONS = ("instruction_following", "conciseness", "truthfulness", "harmlessness")


def new_grading(page: Any, name: str, rows: list[dict[str, str]], overlap: int | None = None) -> None:
    """Makes a project of pairs on /gradings, where the page is, and imports rows."""
    page.locator("#projects option").first.wait_for(state="attached")
    if page.locator("#new").get_attribute("open") is None:
        page.locator("#new summary").click()
    page.locator("#name").fill(name)
    page.locator("#a").fill("4 bits")
    page.locator("#b").fill("16 bits")
    if overlap is not None:
        page.locator("#overlap").fill(str(overlap))
    page.get_by_role("button", name="Begin").click()
    page.locator("#project").wait_for()
    text = "".join(json.dumps(row) + "\n" for row in rows)
    file = {"name": "pairs.jsonl", "mimeType": "application/jsonl", "buffer": text.encode()}
    page.locator("#file").set_input_files(file)
    page.locator("#add").click()
    page.locator("#status", has_text=f"Added: {len(rows)}.").wait_for()


def begin_grading(page: Any, grader: str, project: str = "") -> None:
    """On /grade: takes the first item of a project, by default of the newest."""
    page.locator("#projects option").first.wait_for(state="attached")
    if project:
        page.locator("#projects").select_option(label=project)
    page.locator("#grader").fill(grader)
    page.get_by_role("button", name="Begin").click()
    page.locator("#task, #status:has-text('Nothing')").first.wait_for()


def fill_for_show(page: Any, path: str) -> None:
    """Brings a page into the state in which it is worth looking at."""
    if path == "/write":
        page.locator("#task").select_option("proofread")
        page.locator("#text").fill(MAIL)
        page.locator("#go").click()
        done(page)
        accept = page.get_by_role("button", name="Accept: ")
        if accept.count():
            accept.first.click()
    elif path == "/chat":
        page.locator("#settings summary").click()
        page.locator("#max_tokens").fill("60")
        page.locator("#temperature").fill("0")
        page.locator("#prompt").fill("Why is the sky blue?")
        page.locator("#send").click()
        done(page)
        page.locator("#settings summary").click()
    elif path == "/adapters":
        page.locator("#list tr").first.wait_for()
    elif path == "/compression":
        page.locator("#analysis").wait_for(timeout=WAIT)
    elif path == "/compare":
        new_comparison(page, "with and without recovery")
        page.locator("#prompts").fill("Name three fruits that grow in cold countries.")
        page.locator("#ask").click()
        page.locator("#pair").wait_for(timeout=WAIT)
        page.keyboard.press("1")
        page.locator("#results-note", has_text="1 vote").wait_for()
    elif path in ("/grade", "/gradings"):
        origin = page.url.removesuffix(path)
        page.goto(f"{origin}/gradings")
        count = 1 if path == "/grade" else 24
        rows = [{**GRADED, "id": str(number), "b": f"{GRADED['b']} {number}"} for number in range(count)]
        new_grading(page, "with and without compression", rows, overlap=2)
        if path == "/gradings":
            for grader in ("Anna", "Ben"):
                grade_by_rule(page, origin, grader)
            page.locator("#read").click()
            page.locator("#tables table").first.wait_for()
            return
        page.goto(f"{origin}/grade")
        begin_grading(page, "Anna")
        better = "left" if page.locator("#left", has_text="plums").count() else "right"
        for place in ("left", "right"):
            for question in QUESTIONS:
                good = place == better or question in ("truthfulness", "harmlessness")
                page.locator(f"#{place}-{question}-{'good' if good else 'poor'}").check()
        page.locator(f"#verdict-{better}").check()
        page.locator("#level-better").check()


def grade_by_rule(page: Any, origin: str, grader: str) -> None:
    """All that is left of the newest project, over HTTP: A is better three times of four."""
    project = page.request.get(f"{origin}/v1/grading/projects").json()["data"][0]["id"]
    for number in range(100):
        address = f"{origin}/v1/grading/projects/{project}/next"
        item = page.request.post(address, data={"grader": grader}).json()["item"]
        if item is None:
            return
        a = "left" if "plums" in item["left"] else "right"
        b = "right" if a == "left" else "left"
        better = b if number % 4 == 3 else a
        grades = {place: dict.fromkeys(QUESTIONS, "good" if place == better else "fair") for place in (a, b)}
        body = {"grader": grader, "verdict": better, "level": "slightly_better", "gradings": grades}
        assert page.request.post(f"{origin}/v1/grading/items/{item['id']}/gradings", data=body).ok
