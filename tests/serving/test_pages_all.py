"""What holds for all pages, in a real Chromium: text stays text, key, dark mode, keyboard, axe, pictures.

The pictures of docs/pages.md are made by

    POMONA_SCREENSHOTS=docs/images python -m pytest -m slow tests/serving/test_pages_all.py -k pictures

POMONA_SCREENSHOTS_MIX may name the directory of a model of several widths, for the picture of Compression.

axe-core, which judges accessibility, is no Python package: `npm install --no-save axe-core` in the working
directory, or POMONA_AXE with the path of its axe.min.js.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from page_steps import (
    MAIL,
    PAGES,
    WAIT,
    Open,
    answer_with,
    corrected,
    done,
    fill_for_show,
    lines,
    new_comparison,
)
from serving_server import Running, loaded, serving

from pomona.runtime.model import Model

KEY = "a key of some length"
MARKUP = "<img src=x onerror=\"document.title='gone'\"><script>document.title='gone'</script><b>bold</b>"

slow = pytest.mark.slow


# --- what holds for all of them


@slow
def test_markup_in_what_a_model_writes_stays_text(visit: Open, site: Running) -> None:
    result = {
        "origin": {"model": MARKUP, "adapter": MARKUP, "requests": 1},
        "usage": {"completion_tokens": 1},
        "timings": {"seconds": 1.0, "tokens_per_second": 1.0},
    }
    edit = {"start": 0, "end": 1, "original": "x", "replacement": MARKUP}
    for task, extra in {
        "summarize": {"text": MARKUP},
        "proofread": {"edits": [edit]},
        "key_points": {"points": [MARKUP]},
        "replies": {"questions": [MARKUP], "replies": [MARKUP]},
    }.items():
        page = visit(f"{site.url}/write")
        piece = json.dumps({"points": [MARKUP]})
        answer_with(
            page,
            "/v1/write/",
            lines(
                ("progress", {"batch": 0, "done": 0, "requests": 1}),
                ("piece", {"request": 0, "text": piece}),
                ("result", {**result, **extra}),
            ),
        )
        page.locator("#text").fill("x" + MARKUP)
        page.locator("#task").select_option(task)
        page.locator("#go").click()
        done(page)
        assert_plain(page, "#output")
    page = visit(f"{site.url}/chat")
    delta = {"choices": [{"index": 0, "delta": {"content": MARKUP}, "finish_reason": None}]}
    answer_with(page, "/v1/chat/completions", f"data: {json.dumps(delta)}\n\ndata: [DONE]\n\n")
    page.locator("#prompt").fill(MARKUP)
    page.locator("#send").click()
    done(page)
    assert_plain(page, "#talk")
    page = visit(f"{site.url}/compare")
    new_comparison(page, MARKUP)
    sides = {side: {"text": MARKUP} for side in ("left", "right")}
    answer_with(page, "/pairs$", lines(("pair", {"id": "1", "prompt": MARKUP, **sides})))
    page.locator("#prompts").fill(MARKUP)
    page.locator("#ask").click()
    page.locator("#pair").wait_for()
    assert_plain(page, "#pair")


def assert_plain(page: Any, place: str) -> None:
    assert "<script>" in page.locator(place).inner_text()
    assert page.locator("main img, main b, main script").count() == 0
    assert page.title() != "gone"


@slow
def test_markup_cannot_be_assigned_even_by_our_own_code(visit: Open, site: Running) -> None:
    page = visit(f"{site.url}/write", expected="policy: |TrustedHTML|Refused|inline")
    refused = page.evaluate(
        """() => { try { document.querySelector('#output').innerHTML = '<b>x</b>'; return false; }
           catch (error) { return error instanceof TypeError; } }"""
    )
    assert refused
    page.evaluate(
        """() => { const s = document.createElement('style'); s.textContent = 'body { display: none }';
           document.head.append(s); }"""
    )
    assert page.evaluate("getComputedStyle(document.body).display") == "block"


@slow
def test_the_key_is_asked_for_and_kept_in_this_tab(visit: Open, site_dir: Path, tmp_path: Path) -> None:
    with (
        loaded(site_dir) as own,
        serving(own, api_key=KEY, compare_db=tmp_path / "c.db", grading_db=tmp_path / "g.db") as running,
    ):
        page = visit(f"{running.url}/chat", expected="401")
        page.get_by_role("dialog").wait_for()
        page.locator("#api-key").fill("a wrong key, but long")
        page.keyboard.press("Enter")
        page.get_by_role("dialog", name="That key was refused").wait_for()
        page.locator("#api-key").fill(KEY)
        page.get_by_role("button", name="Use this key").click()
        page.locator("#model option").nth(1).wait_for(state="attached")
        assert page.evaluate("sessionStorage.getItem('pomona-key')") == KEY
        assert KEY not in page.evaluate("JSON.stringify({...localStorage}) + document.cookie")
        page.goto(f"{running.url}/adapters")  # the same tab
        page.locator("#list tr", has_text="recovery").wait_for()
        assert page.get_by_role("dialog").count() == 0


@slow
def test_it_is_dark_where_the_system_is_and_on_request(visit: Open, site: Running) -> None:
    def brightness(page: Any) -> int:
        found = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
        return int(sum(found[:3]))

    dark, light = (visit(f"{site.url}/write", color_scheme=scheme) for scheme in ("dark", "light"))
    assert brightness(dark) < 150 < 600 < brightness(light)
    light.get_by_role("button", name="Dark").click()
    assert brightness(light) < 150
    for path in PAGES[2:]:
        light.goto(site.url + path)
        assert brightness(light) < 150
        assert light.get_by_role("button", name="Dark").get_attribute("aria-pressed") == "true"


@slow
@pytest.mark.parametrize("path", PAGES)
def test_every_control_is_reached_by_the_tab_key(visit: Open, site: Running, path: str) -> None:
    page = visit(site.url + path)
    page.locator("#served", has_text="smollm2").wait_for()
    if path == "/compression":
        page.locator("#analysis").wait_for(timeout=WAIT)
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the page"
    wanted = page.evaluate(
        """() => [...document.querySelectorAll('a[href], button, input, select, textarea, summary')]
             .filter((e) => e.checkVisibility() && !e.disabled && e.tabIndex >= 0
               && !(e.type === 'radio' && !e.checked) && !e.closest('#tensors')).length"""
    )
    reached = set()
    for _ in range(wanted + 250):
        key = page.evaluate(
            """() => { const e = document.activeElement;
              if (e === document.body) return null;
              const all = [...document.querySelectorAll('a[href], button, input, select, textarea, summary')]
                .filter((o) => !o.closest('#tensors'));
              return all.indexOf(e); }"""
        )
        if key is None and reached:
            break
        if key is not None and key >= 0:
            reached.add(key)
            if len(reached) == wanted:
                break
        page.keyboard.press("Tab")
    assert len(reached) == wanted


@pytest.fixture(scope="module")
def axe() -> str:
    """The source of axe-core."""
    given = os.environ.get("POMONA_AXE")
    path = Path(given) if given else Path("node_modules/axe-core/axe.min.js")
    if not path.is_file():
        pytest.skip(
            "axe-core is not there; npm install --no-save axe-core, or set POMONA_AXE to its axe.min.js"
        )
    return path.read_text(encoding="utf-8")


@slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("path", PAGES)
def test_axe_finds_no_serious_fault(axe: str, visit: Open, site: Running, path: str, scheme: str) -> None:
    page = visit(site.url + path, color_scheme=scheme, bypass_csp=True)
    page.locator("#served", has_text="smollm2").wait_for()
    if path == "/write":
        answer_with(page, "/v1/write/", corrected(MAIL))
    fill_for_show(page, path)
    page.evaluate(axe)
    found = page.evaluate("axe.run(document).then((r) => r.violations)")
    serious = [
        (fault["id"], [node["html"][:160] for node in fault["nodes"]][:4])
        for fault in found
        if fault["impact"] in ("serious", "critical")
    ]
    assert serious == []


@slow
def test_pictures_of_the_pages(visit: Open, site_dir: Path, tmp_path: Path) -> None:
    folder = Path(os.environ.get("POMONA_SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    # A mix of widths shows more of Compression than a model of one width.
    usual = str(site_dir)
    mixed = os.environ.get("POMONA_SCREENSHOTS_MIX", usual)
    shown = [(path, "light", usual) for path in ("/write", "/chat", "/adapters", "/compare", "/grade")]
    shown.append(("/gradings", "light", usual))
    made = []
    for path, scheme, name in [*shown, ("/chat", "dark", usual), ("/compression", "light", mixed)]:
        height = {"/compression": 820, "/compare": 1080, "/grade": 1150, "/gradings": 1000}.get(path, 760)
        with (
            Model.load(name, threads=1) as model,
            serving(model, compare_db=tmp_path / "c.db", grading_db=tmp_path / "g.db") as running,
        ):
            page = visit(running.url + path, color_scheme=scheme, viewport={"width": 960, "height": height})
            page.locator("#served", has_text="smollm2").wait_for()
            fill_for_show(page, path)
            page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
            picture = folder / f"{path[1:]}{'-dark' if scheme == 'dark' else ''}.png"
            page.screenshot(path=picture)
            page.close()
        made.append(picture)
    assert len(made) == 8
    assert all(5_000 < picture.stat().st_size < 150_000 for picture in made)
