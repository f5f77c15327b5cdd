"""The page of a result: one file that loads nothing, and in which no text becomes markup."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from pomona.errors import PomonaError
from pomona.evaluation.report_page import render
from pomona.evaluation.results import EvalResult, TaskResult

HOSTILE = "</pre></style><script>alert(1)</script><img src=x onerror=alert(1)> & \"'"

_TEXT = "h1 h2 p pre dl dt dd table caption thead tbody tr th td details summary div"
TAGS = {"html", "head", "meta", "title", "style", "body", "main", "svg", "line", "circle", "text"}


def result(model: str = "m", scores: tuple[float, ...] = (1.0, 0.0, 1.0), answer: str = "text") -> EvalResult:
    items = {f"item {n}": score for n, score in enumerate(scores)}
    answers = {key: f"{answer} {key}" for key in items}
    tasks = (
        TaskResult("ifeval", "prompt_strict", 0, "1", items, answers=answers),
        TaskResult("ifeval", "prompt_loose", 0, "1", items, main=False),
    )
    return EvalResult("instruct", model, "f00", None, None, False, 3, "", "2026-01-01", 1.0, tasks)


class Elements(HTMLParser):
    """Tags with their attributes, and all text outside <style>."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self.open:
            while self.open.pop() != tag:
                pass

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data


def hostile() -> EvalResult:
    one = result(HOSTILE, answer=HOSTILE)
    tasks = tuple(
        replace(
            task,
            task=HOSTILE,
            items={HOSTILE + key: value for key, value in task.items.items()},
            answers={HOSTILE + key: value for key, value in task.answers.items()},
        )
        for task in one.tasks
    )
    return replace(one, tasks=tasks, suite=HOSTILE, adapter=HOSTILE, left_out=(HOSTILE,), lm_eval=HOSTILE)


@pytest.mark.parametrize("other", [None, hostile()])
def test_what_a_file_says_is_text(other: EvalResult | None) -> None:
    first = hostile()
    if other is not None:
        first = replace(
            first, tasks=tuple(replace(t, items={k: 1 - v for k, v in t.items.items()}) for t in first.tasks)
        )
    page = Elements(render(first, other))
    assert {tag for tag, _ in page.tags} <= TAGS.union(_TEXT.split(" "))
    for _, attributes in page.tags:
        assert not any(name.startswith("on") or name in ("src", "href", "style") for name in attributes)
    assert page.text.count(HOSTILE) >= 8  # it is all there, as it was


def test_nothing_but_the_one_style_sheet_is_admitted() -> None:
    page = render(result())
    [policy] = [
        attributes["content"]
        for tag, attributes in Elements(page).tags
        if tag == "meta" and attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    style = re.search(r"<style>(.*?)</style>", page, re.DOTALL)
    assert style is not None and policy is not None
    mark = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert policy.startswith("default-src 'none';") and f"style-src 'sha256-{mark}'" in policy
    assert "unsafe" not in policy and "script-src" not in policy
    assert "url(" not in style[1] and "@import" not in style[1]


def test_a_page_has_every_value_with_its_interval() -> None:
    one = result()
    text = Elements(render(one)).text
    for name, interval in one.rows():
        assert name in text and f"{100 * interval.value:.2f}%" in text
        assert f"{100 * interval.low:.2f} .. {100 * interval.high:.2f}" in text
    assert "text item 0" in text


def test_a_comparison_shows_differences_and_the_answers_that_made_them() -> None:
    ours, theirs = result("a", (1, 1, 1), "first"), result("b", (1, 0, 1), "second")
    text = Elements(render(ours, theirs)).text
    assert "+33.33" in text
    assert "first item 1" in text and "second item 1" in text
    assert "first item 0" not in text  # the same score: nothing to see


def test_results_of_other_suites_are_refused() -> None:
    other = result("b")
    other = replace(other, tasks=tuple(replace(task, task="another") for task in other.tasks))
    with pytest.raises(PomonaError, match="no item in common"):
        render(result(), other)
