"""The page of the analysis: one file that loads nothing, keeps the data unharmed, solves the allocation."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from typing import Any

import pytest
from analysis_samples import report_json, sample_analysis

from pomona.compression.allocate import Choice, allocate
from pomona.compression.analysis_page import SCRIPTS, embed_json, page_part, render_page

HOSTILE = "</script><script>alert(1)</script><!-- <b>&amp; \u2028 @DATA@ @SCRIPT@ '\"` 名前"


class Elements(HTMLParser):
    """All tags with their attributes, and the text of every script."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] == "script" and self.scripts:
            self.scripts[-1] += data


def test_the_page_refers_to_nothing_outside_itself() -> None:
    page = Elements(render_page(sample_analysis().to_json()))
    assert len(page.tags) > 50
    for tag, attributes in page.tags:
        assert tag not in {"link", "img", "iframe", "object", "embed", "base", "form", "audio", "video"}
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in {"src", "href", "srcset", "action", "data", "poster"}:
                assert value is not None and value.startswith("#"), (tag, name, value)
    code = "".join(page_part(name) for name in (*SCRIPTS, "page.css"))
    for word in (
        "@import",
        "url(",
        "fetch(",
        "XMLHttpRequest",
        "WebSocket",
        "import(",
        "sendBeacon",
        "eval(",
    ):
        assert word not in code
    assert set(re.findall(r"https?://[^\s\"']+", code)) == {"http://www.w3.org/2000/svg"}  # a namespace


def test_only_its_own_script_and_style_may_run() -> None:
    page = render_page(sample_analysis().to_json())
    policy = next(a["content"] for t, a in Elements(page).tags if a.get("http-equiv"))
    assert policy is not None
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert policy.count("sha256-") == 2


def test_text_is_never_inserted_as_markup() -> None:
    code = "".join(page_part(name) for name in SCRIPTS)
    assert "textContent" in code
    for word in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "createContextualFragment",
    ):
        assert word not in code


def test_names_with_markup_leave_the_page_as_it_is() -> None:
    raw = report_json()
    raw["modules"][3]["name"] = HOSTILE
    raw["options"] = {HOSTILE: HOSTILE}
    analysis = sample_analysis(raw, model=HOSTILE)
    page, plain = (Elements(render_page(a.to_json())) for a in (analysis, sample_analysis()))
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in plain.tags]
    assert len(page.scripts) == 2
    assert json.loads(page.scripts[0]) == analysis.to_json()
    assert page.scripts[1] == plain.scripts[1]


def test_embedded_json_means_the_same_and_has_no_character_of_markup() -> None:
    text = embed_json({"a": HOSTILE, "n": 1.5})
    assert json.loads(text) == {"a": HOSTILE, "n": 1.5}
    assert not set("<>&\u2028\u2029") & set(text)
    with pytest.raises(ValueError, match="JSON"):
        embed_json({"a": float("nan")})


def least_loss(modules: list[dict[str, Any]], budget: int, pins: dict[str, int]) -> float | None:
    """The exact optimum: all undominated pairs of bytes and loss, module by module."""
    pairs = [(0, 0.0)]
    for module in modules:
        wanted = pins.get(module["name"])
        options = [c for c in module["choices"] if wanted is None or c["bits"] == wanted]
        sums = sorted((b + c["bytes"], x + c["loss"]) for b, x in pairs for c in options)
        pairs, best = [], float("inf")
        for nbytes, loss in sums:
            if loss < best and nbytes <= budget:
                pairs.append((nbytes, loss))
                best = loss
    return pairs[-1][1] if pairs else None


@pytest.fixture(scope="module")
def node() -> str:
    found = shutil.which("node") or shutil.which("nodejs")
    if found is None:
        pytest.skip("node is not installed; it runs the page's solver without a browser")
    return found


def solved(node: str, cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    program = (
        page_part("solver.js")
        + "\nconst cases = JSON.parse(require('fs').readFileSync(0, 'utf8'));"
        + "\nconsole.log(JSON.stringify(cases.map((c) => solve(c.modules, c.budget, new Map(c.pins)))));"
    )
    done = subprocess.run(
        [node, "-e", program], input=json.dumps(cases), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    answer: list[dict[str, Any]] = json.loads(done.stdout)
    return answer


def test_the_solver_of_the_page_finds_the_best_allocation(node: str) -> None:
    cases = []
    for seed in range(24):
        modules = sample_analysis(report_json(layers=2, seed=seed)).to_json()["modules"]
        least, most = (sum(f(c["bytes"] for c in m["choices"]) for m in modules) for f in (min, max))
        pins = {modules[5]["name"]: 2, modules[0]["name"]: 4} if seed % 3 == 0 else {}
        for part in (-0.01, 0, 0.1, 0.37, 0.5, 0.8, 0.99, 1, 1.5):
            budget = int(least + part * (most - least))
            cases.append({"modules": modules, "budget": budget, "pins": list(pins.items())})
    seen = 0
    for case, answer in zip(cases, solved(node, cases), strict=True):
        expected = least_loss(case["modules"], case["budget"], dict(case["pins"]))
        assert answer["feasible"] == (expected is not None)
        if expected is None:
            continue
        chosen = [m["choices"][i] for m, i in zip(case["modules"], answer["picks"], strict=True)]
        assert sum(c["bytes"] for c in chosen) == answer["bytes"] <= case["budget"]
        assert sum(c["loss"] for c in chosen) == pytest.approx(answer["loss"])
        assert answer["exact"] and answer["loss"] == pytest.approx(expected, rel=1e-9)
        for module, choice in zip(case["modules"], chosen, strict=True):
            assert choice["bits"] == dict(case["pins"]).get(module["name"], choice["bits"])
        seen += 1
    assert seen > 150


def test_losses_that_do_not_fall_with_the_bits_are_no_obstacle(node: str) -> None:
    modules = sample_analysis(report_json(layers=1)).to_json()["modules"]
    for module in modules[::2]:
        module["choices"][0]["loss"], module["choices"][-1]["loss"] = 3e-4, 1e-4
    most = sum(max(c["bytes"] for c in m["choices"]) for m in modules)
    cases = [{"modules": modules, "budget": int(most * part), "pins": []} for part in (0.55, 0.7, 0.9, 1)]
    for case, answer in zip(cases, solved(node, cases), strict=True):
        assert answer["loss"] == pytest.approx(least_loss(modules, case["budget"], {}), rel=1e-9)


def test_page_and_pipeline_agree(node: str) -> None:
    cases = []
    for seed in range(4):
        modules = sample_analysis(report_json(layers=4, seed=seed)).to_json()["modules"]
        least, most = (sum(f(c["bytes"] for c in m["choices"]) for m in modules) for f in (min, max))
        cases += [
            {"modules": modules, "budget": int(least + part * (most - least)), "pins": []}
            for part in (0.2, 0.5, 0.9)
        ]
    for case, answer in zip(cases, solved(node, cases), strict=True):
        choices = {
            m["name"]: [Choice(c["bits"], c["bytes"], c["loss"]) for c in m["choices"]]
            for m in case["modules"]
        }
        of_pipeline = sum(choice.loss for choice in allocate(choices, case["budget"]).values())
        assert answer["loss"] == pytest.approx(of_pipeline, rel=1e-3)
        assert answer["loss"] <= of_pipeline * (1 + 1e-9)
