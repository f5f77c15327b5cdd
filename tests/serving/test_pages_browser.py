"""The pages in a real Chromium, on the real model: every flow, by mouse and by keys, and no complaint.

Most of it is slow. The pictures of docs/pages.md are made here too:

    POMONA_SCREENSHOTS=docs/images POMONA_MIXED_MODEL=smollm2-135m-3.5bit \
        python -m pytest -m slow tests/serving/test_pages_browser.py -k pictures

axe-core, which judges accessibility, is no Python package: `npm install axe-core` in the working directory,
or POMONA_AXE with the path of its axe.min.js.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pages_server import running, tiny_model

from pomona.adapters.edits import Edit, apply_edits
from pomona.runtime.model import Model

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
PAGES = ("/", "/write", "/chat", "/adapters", "/compression", "/compare")
KEY = "a key of some length"
MARKUP = "<img src=x onerror=\"document.title='gone'\"><script>document.title='gone'</script><b>bold</b>"
MAIL = (
    "Hi Ben,\n\nthe meeting on Monday has to move, becuase Clara are away until Wednesday. Can you come on "
    "Thursday at 14:00 insted? We need the figures of the last month, and the list of the guests.\n\nAnna"
)
WAIT = 120_000  # milliseconds, for an answer on a busy machine

Open = Callable[..., Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed; pip install 'pomona[browser]'"
    )
    program = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip("no Chromium is installed; apt-get install chromium")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def model(smollm2_4bit_dir: Path) -> Iterator[Model]:
    with Model.load(str(smollm2_4bit_dir), threads=1) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def site(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running(model, compare_db=tmp_path_factory.mktemp("compare") / "compare.db") as url:
        yield url


@pytest.fixture
def mixed(site: str, tmp_path: Path) -> Iterator[str]:
    """For the picture of Compression: a model of several widths, POMONA_MIXED_MODEL, else the usual one."""
    name = os.environ.get("POMONA_MIXED_MODEL")
    if name is None:
        yield site
        return
    with Model.load(name, threads=1) as own, running(own, compare_db=tmp_path / "mixed.db") as url:
        yield url


@pytest.fixture
def visit(browser: Any) -> Iterator[Open]:
    """Opens a page; fails if it complains, breaks its policy, or asks anybody else for anything."""
    complaints: list[str] = []
    asked: list[str] = []
    contexts = []
    origins: set[str] = set()

    def open_page(address: str, *, expected: str = "", **options: Any) -> Any:
        """expected: a pattern of what the console may say."""
        context = browser.new_context(accept_downloads=True, **options)
        contexts.append(context)
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        page = context.new_page()
        page.set_default_timeout(20_000)

        def complain(text: str) -> None:
            if not expected or not re.search(expected, text):
                complaints.append(text)

        page.on("console", lambda message: complain(message.text))
        page.on("pageerror", lambda error: complain(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.add_init_script(
            "addEventListener('securitypolicyviolation', (event) =>"
            " console.error('policy: ' + event.violatedDirective))"
        )
        origins.add(re.sub(r"(?<=\d)/.*", "", address))
        page.goto(address)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []
    foreign = [url for url in asked if not url.startswith(("blob:", *(f"{origin}/" for origin in origins)))]
    assert asked and foreign == []


def done(page: Any) -> None:
    page.locator("#status", has_text="Done.").wait_for(timeout=WAIT)


def copied(page: Any) -> str:
    return str(page.evaluate("navigator.clipboard.readText()"))


def idle(model: Model, seconds: float = 10.0) -> bool:
    """Whether the scheduler comes to rest."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        stats = model.scheduler.stats()
        if not stats.running and not stats.waiting:
            return True
        time.sleep(0.05)
    return False


def lines(*events: tuple[str, Any]) -> str:
    return "".join(f"event: {name}\ndata: {json.dumps(data)}\n\n" for name, data in events)


def answer_with(page: Any, pattern: str, body: str) -> None:
    """A reply in the place of the server's: what a model might say, if it were asked to."""
    page.route(
        re.compile(pattern),
        lambda route: route.fulfill(status=200, content_type="text/event-stream", body=body),
    )


# --- a short one, of the plain run


def test_every_page_opens_without_a_complaint(visit: Open, tmp_path: Path) -> None:
    with (
        Model.load(str(tiny_model(tmp_path)), threads=1) as tiny,
        running(tiny, compare_db=tmp_path / "c.db") as url,
    ):
        for path in PAGES:
            # A random model was not compressed by us: its page says so, and the console notes the 404.
            page = visit(url + path, expected="404" if path == "/compression" else "")
            page.locator("#served", has_text="tiny").wait_for()
            assert page.locator("h1").count() == 1
        assert "compression_report.json" in page_text(visit(url + "/compression", expected="404"), "#failed")
        write = visit(url + "/write")
        write.locator("#text").fill("She go.")
        write.locator("#text").press("Control+Enter")
        done(write)
        assert write.locator("#output").inner_text()


def page_text(page: Any, place: str) -> str:
    page.locator(place).wait_for()
    return str(page.locator(place).inner_text())


# --- Write

slow = pytest.mark.slow


@slow
@pytest.mark.parametrize("task", ["summarize", "rewrite", "key_points", "replies"])
def test_a_text_is_worked_on_as_a_stream_and_says_who_did_it(visit: Open, site: str, task: str) -> None:
    page = visit(f"{site}/write")
    page.evaluate(
        """() => { window.seen = new Set();
          const output = document.querySelector('#output');
          new MutationObserver(() => seen.add(output.textContent))
            .observe(output, {childList: true, subtree: true, characterData: true}); }"""
    )
    page.locator("#text").fill(MAIL)
    page.locator("#task").select_option(task)
    page.get_by_role("button", name="Go").click()
    done(page)
    assert page.evaluate("seen.size") > 3
    assert re.search(r"adapter .*tokens/s", page.locator("#origin").inner_text())
    page.locator("#copy").click()
    assert copied(page).strip()
    if task == "replies":
        page.get_by_role("button", name="Copy the reply").first.click()
        assert copied(page).strip() in page.locator("#output").inner_text()


@slow
def test_options_are_those_of_the_task(visit: Open, site: str) -> None:
    page = visit(f"{site}/write")
    assert page.locator("#style").is_visible() and page.locator("#tone").is_hidden()
    page.locator("#task").select_option("rewrite")
    assert page.locator("#style").is_hidden() and page.locator("#tone").is_visible()
    page.locator("#text").fill("Send me the list.")
    page.locator("#tone").select_option("concise")
    page.locator("#adapter").select_option("base")
    with page.expect_request("**/v1/write/rewrite") as waiting:
        page.locator("#go").click()
    assert json.loads(waiting.value.post_data) == {
        "text": "Send me the list.",
        "stream": True,
        "adapter": "base",
        "tone": "concise",
    }
    done(page)
    assert "without an adapter" in page.locator("#origin").inner_text()


@slow
def test_every_edit_is_accepted_or_rejected_by_itself(visit: Open, site: str, model: Model) -> None:
    page = visit(f"{site}/write")
    text = "👍 " + MAIL  # a character of two units in JavaScript: places must not shift
    edits = proofread(page, text)
    assert len(edits) >= 2
    page.get_by_role("button", name="Accept: ").first.click()
    page.get_by_role("button", name="Reject: ").nth(1).click()
    page.locator("#copy").click()
    assert copied(page) == apply_edits(text, edits[:1])
    assert f"2 of {len(edits)} decided" in page.locator("#decided").inner_text()
    page.locator("#accept-all").click()
    page.locator("#copy").click()
    assert copied(page) == apply_edits(text, edits)
    page.locator("#reject-all").click()
    page.locator("#use").click()
    assert page.locator("#text").input_value() == text


@slow
def test_edits_are_decided_by_keys_alone(visit: Open, site: str) -> None:
    page = visit(f"{site}/write")
    edits = proofread(page, MAIL, keys=True)
    page.get_by_role("button", name="Accept: ").first.focus()
    page.keyboard.press("r")
    page.keyboard.press("a")
    page.keyboard.press("ArrowUp")
    states = [page.locator("#edits li").nth(i).get_attribute("data-state") for i in range(2)]
    assert states == ["rejected", "accepted"]
    page.locator("#copy").focus()
    page.keyboard.press("Enter")
    assert copied(page) == apply_edits(MAIL, edits[1:2])


def proofread(page: Any, text: str, keys: bool = False) -> list[Edit]:
    """Has the page correct a text, and gives the edits: the same request by itself has the same answer."""
    page.locator("#text").fill(text)
    page.locator("#task").select_option("proofread")
    if keys:
        page.locator("#text").press("Control+Enter")
    else:
        page.locator("#go").click()
    done(page)
    address = page.url.replace("/write", "/v1/write/proofread")
    result = page.request.post(address, data={"text": text}, timeout=WAIT).json()
    return [Edit(**edit) for edit in result["edits"]]


@slow
def test_stopping_stops_the_model(visit: Open, site: str, model: Model) -> None:
    page = visit(f"{site}/write")
    page.locator("#text").fill("\n\n".join([MAIL] * 40))
    page.locator("#task").select_option("proofread")
    page.locator("#go").click()
    page.locator("#status", has_text="of 40").or_(page.locator("#status", has_text="Piece")).first.wait_for()
    page.keyboard.press("Escape")
    page.locator("#status", has_text="Stopped.").wait_for()
    assert idle(model)
    assert page.locator("#go").is_enabled()


# --- Chat


@slow
def test_a_conversation_has_turns_settings_and_an_end(visit: Open, site: str) -> None:
    bodies: list[Any] = []
    page = visit(f"{site}/chat")
    page.on(
        "request", lambda r: "/chat/completions" in r.url and bodies.append(json.loads(r.post_data or "{}"))
    )
    page.locator("#settings summary").click()
    page.locator("#system").fill("Answer in one sentence.")
    page.locator("#temperature").fill("0")
    page.locator("#max_tokens").fill("40")
    page.locator("#prompt").fill("What is a prime number?")
    page.locator("#prompt").press("Enter")
    done(page)
    assert page.locator("#prompt").input_value() == ""
    first = page.locator(".turn.assistant .text").first.inner_text()
    assert first and "tokens/s" in page.locator(".turn.assistant").first.inner_text()
    page.locator("#model").select_option(index=1)
    page.locator("#prompt").fill("Name one.")
    page.locator("#send").click()
    page.locator(".turn.assistant").nth(1).get_by_role("button", name="Copy").wait_for(timeout=WAIT)
    assert [m["role"] for m in bodies[1]["messages"]] == ["system", "user", "assistant", "user"]
    assert bodies[1]["messages"][2]["content"].strip() == first.strip()
    assert (bodies[1]["temperature"], bodies[1]["max_completion_tokens"]) == (0, 40)
    assert bodies[0]["model"] != bodies[1]["model"]
    page.locator("#copy-all").click()
    assert copied(page).count("You: ") == 2
    page.locator("#again").click()
    done(page)
    assert len(bodies) == 3 and bodies[2]["messages"] == bodies[1]["messages"]
    kept = page.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}])")
    assert "prime" not in kept
    page.locator("#clear").click()
    assert page.locator(".turn").count() == 0
    page.reload()
    assert page.locator(".turn").count() == 0


@slow
def test_a_long_answer_can_be_stopped(visit: Open, site: str, model: Model) -> None:
    page = visit(f"{site}/chat")
    page.locator("#prompt").fill("Write a very long story about a lighthouse, with many chapters.")
    page.locator("#send").click()
    page.locator(".turn.assistant .text", has_text=re.compile(r".{20}", re.DOTALL)).wait_for(timeout=WAIT)
    page.locator("#stop").click()
    page.locator("#status", has_text="Stopped.").wait_for()
    assert idle(model)
    assert "stopped" in page.locator(".turn.assistant").inner_text()
    assert page.locator("#send").is_enabled()


@slow
def test_a_setting_out_of_range_is_called_out_and_nothing_is_sent(visit: Open, site: str) -> None:
    page = visit(f"{site}/chat")
    page.locator("#settings summary").click()
    page.locator("#temperature").fill("9")
    page.locator("#prompt").fill("Hello")
    page.locator("#send").click()
    assert "Temperature" in page_text(page, "#error")
    assert page.locator("#prompt").input_value() == "Hello"


# --- Adapters


@slow
def test_adapters_are_pinned_replaced_unloaded_and_loaded_live(
    visit: Open, smollm2_4bit_dir: Path, tmp_path: Path
) -> None:
    shutil.copytree(smollm2_4bit_dir / "adapters" / "recovery", tmp_path / "store" / "other")
    with (
        Model.load(str(smollm2_4bit_dir), threads=1) as own,
        running(own, adapter_store=tmp_path / "store", compare_db=tmp_path / "c.db") as url,
    ):
        page = visit(f"{url}/adapters")
        page.get_by_role("button", name="Pin recovery").click()
        page.locator("#status", has_text="recovery is pinned.").wait_for()
        row = page.locator("#list tr", has_text="recovery")
        assert "in memory, pinned" in row.inner_text()
        assert float(page.locator("#memory").evaluate("(meter) => meter.value")) > 0
        page.get_by_role("button", name="Unpin recovery").click()
        page.locator("#status", has_text="free to give way").wait_for()
        page.get_by_role("button", name="Read again recovery").click()
        page.locator("#status", has_text="read again").wait_for()
        page.locator("#name").fill("other")
        page.locator("#path").fill("other")
        page.locator("#path").press("Enter")
        page.locator("#status", has_text="other is there.").wait_for()
        page.locator("#list tr", has_text="other").wait_for()
        page.get_by_role("button", name="Unload other").click()
        page.locator("#status", has_text="other was unloaded.").wait_for()


@slow
def test_a_folder_outside_the_store_is_refused_in_words(visit: Open, site: str) -> None:
    page = visit(f"{site}/adapters", expected="40[034]")
    page.locator("#name").fill("evil")
    page.locator("#path").fill("/etc")
    page.locator("#load").click()
    assert page_text(page, "#error")
    assert page.locator("#list tr", has_text="evil").count() == 0


# --- Compression


@slow
def test_the_served_model_is_analysed_and_its_budget_moved(visit: Open, site: str, model: Model) -> None:
    assert idle(model)
    page = visit(f"{site}/compression")
    page.locator("#analysis").wait_for(timeout=WAIT)
    report = json.loads((model.engine.directory / "compression_report.json").read_text())
    assert float(page.locator("#size").get_attribute("data-value")) == report["file_bytes"]
    assert float(page.locator("#speed").get_attribute("data-value")) > 0
    assert page.locator("#tensors tbody tr").count() >= len(report["modules"])
    cell = page.locator('#map td[aria-label^="model.layers.0.self_attn.q_proj:"]')
    cell.click()
    page.keyboard.press("4")
    with page.expect_download() as waiting:
        page.locator("#export").click()
    saved = json.loads(Path(waiting.value.path()).read_text())
    assert saved == {"version": 1, "pins": {"model.layers.0.self_attn.q_proj": 4}}


# --- Compare


@slow
def test_a_blind_comparison_from_the_prompt_to_the_export(visit: Open, site: str) -> None:
    page = visit(f"{site}/compare")
    new_comparison(page, "apples")
    page.locator("#lines").check()
    page.locator("#prompts").fill("Name three apples.\nWhat is snow?")
    page.locator("#ask").click()
    pair = page.locator("#pair")
    pair.wait_for(timeout=WAIT)
    for word in ("recovery", "adapter", "tokens"):
        assert word not in pair.inner_text()
    page.keyboard.press("2")
    page.locator("#next").wait_for()
    shown = pair.inner_text()
    assert (
        "no adapter" in shown and re.search(r"Right was [AB]", shown) and re.search(r"\d+ tokens in", shown)
    )
    verdict = page.locator("#pair-title").inner_text()
    assert verdict == f"{re.search(r'Right was ([AB])', shown)[1]} wins."  # type: ignore[index]
    page.keyboard.press("Enter")  # the focus is on Next
    page.locator("#pair-title", has_text="Which is better?").wait_for(timeout=WAIT)
    page.get_by_role("button", name="Tie").click()
    page.locator("#pair-title", has_text="A tie.").wait_for()
    page.locator("#results-note", has_text="2 votes").wait_for()
    assert "1 of 1: 100% (21% to 100%)" in page.locator(
        "#results"
    ).inner_text() or "0 of 1: 0% (0% to 79%)" in (page.locator("#results").inner_text())
    rows = exported(page, "#export-preferences")
    assert len(rows) == 1 and {"prompt", "chosen", "rejected"} <= set(rows[0])
    assert [row["verdict"] for row in exported(page, "#export-votes")][1] == "tie"
    page.reload()
    page.locator("#sessions").select_option(label="apples (2 votes)")
    page.locator("#results-note", has_text="2 votes").wait_for()
    page.once("dialog", lambda dialog: dialog.accept())
    page.locator("#delete").click()
    page.locator("#session").wait_for(state="hidden")
    assert page.locator("#sessions option", has_text="apples").count() == 0


@slow
def test_a_pair_without_a_vote_waits_and_is_still_blind(visit: Open, site: str) -> None:
    page = visit(f"{site}/compare")
    new_comparison(page, "waiting")
    page.locator("#prompts").fill("What is rain?")
    page.locator("#ask").click()
    page.locator("#pair").wait_for(timeout=WAIT)
    left = page.locator("#left").inner_text()
    page.reload()
    page.locator("#sessions").select_option(label="waiting (0 votes)")
    page.locator("#pair").wait_for()
    assert page.locator("#left").inner_text() == left
    assert page.locator("#left-name").inner_text() == "Left"


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


def exported(page: Any, control: str) -> list[Any]:
    with page.expect_download() as waiting:
        page.locator(control).click()
    assert waiting.value.suggested_filename.endswith(".jsonl")
    return [json.loads(line) for line in Path(waiting.value.path()).read_text("utf-8").splitlines()]


# --- what holds for all of them


@slow
def test_markup_in_what_a_model_writes_stays_text(visit: Open, site: str) -> None:
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
        page = visit(f"{site}/write")
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
    page = visit(f"{site}/chat")
    delta = {"choices": [{"index": 0, "delta": {"content": MARKUP}, "finish_reason": None}]}
    answer_with(page, "/v1/chat/completions", f"data: {json.dumps(delta)}\n\ndata: [DONE]\n\n")
    page.locator("#prompt").fill(MARKUP)
    page.locator("#send").click()
    done(page)
    assert_plain(page, "#talk")
    page = visit(f"{site}/compare")
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
def test_markup_cannot_be_assigned_even_by_our_own_code(visit: Open, site: str) -> None:
    page = visit(f"{site}/write", expected="policy: |TrustedHTML|Refused|inline")
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
def test_the_key_is_asked_for_and_kept_in_this_tab(
    visit: Open, smollm2_4bit_dir: Path, tmp_path: Path
) -> None:
    with (
        Model.load(str(smollm2_4bit_dir), threads=1) as own,
        running(own, api_key=KEY, compare_db=tmp_path / "c.db") as url,
    ):
        page = visit(f"{url}/chat", expected="401")
        page.get_by_role("dialog").wait_for()
        page.locator("#api-key").fill("a wrong key, but long")
        page.keyboard.press("Enter")
        page.get_by_role("dialog", name="That key was refused").wait_for()
        page.locator("#api-key").fill(KEY)
        page.get_by_role("button", name="Use this key").click()
        page.locator("#model option").nth(1).wait_for(state="attached")
        assert page.evaluate("sessionStorage.getItem('pomona-key')") == KEY
        assert KEY not in page.evaluate("JSON.stringify({...localStorage}) + document.cookie")
        page.goto(f"{url}/adapters")  # the same tab
        page.locator("#list tr", has_text="recovery").wait_for()
        assert page.get_by_role("dialog").count() == 0


@slow
def test_it_is_dark_where_the_system_is_and_on_request(visit: Open, site: str) -> None:
    def brightness(page: Any) -> int:
        found = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
        return int(sum(found[:3]))

    dark, light = (visit(f"{site}/write", color_scheme=scheme) for scheme in ("dark", "light"))
    assert brightness(dark) < 150 < 600 < brightness(light)
    light.get_by_role("button", name="Dark").click()
    assert brightness(light) < 150
    for path in PAGES[2:]:
        light.goto(site + path)
        assert brightness(light) < 150
        assert light.get_by_role("button", name="Dark").get_attribute("aria-pressed") == "true"


@slow
@pytest.mark.parametrize("path", PAGES)
def test_every_control_is_reached_by_the_tab_key(visit: Open, site: str, path: str) -> None:
    page = visit(site + path)
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
        pytest.skip("axe-core is not there; npm install axe-core, or set POMONA_AXE to its axe.min.js")
    return path.read_text(encoding="utf-8")


@slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("path", PAGES)
def test_axe_finds_no_serious_fault(axe: str, visit: Open, site: str, path: str, scheme: str) -> None:
    page = visit(site + path, color_scheme=scheme, bypass_csp=True)
    page.locator("#served", has_text="smollm2").wait_for()
    fill_for_show(page, path)
    page.evaluate(axe)
    found = page.evaluate("axe.run(document).then((r) => r.violations)")
    serious = [
        (fault["id"], [node["html"][:160] for node in fault["nodes"]][:4])
        for fault in found
        if fault["impact"] in ("serious", "critical")
    ]
    assert serious == []


def fill_for_show(page: Any, path: str) -> None:
    """Brings a page into the state in which it is worth looking at."""
    if path == "/write":
        page.locator("#task").select_option("proofread")
        page.locator("#text").fill(MAIL)
        page.locator("#go").click()
        done(page)
        page.get_by_role("button", name="Accept: ").first.click()
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


@slow
def test_pictures_of_the_pages(visit: Open, site: str, mixed: str, tmp_path: Path) -> None:
    folder = Path(os.environ.get("POMONA_SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for path, scheme in [*((path, "light") for path in PAGES[1:]), ("/chat", "dark")]:
        height = {"/compression": 900, "/compare": 900}.get(path, 720)
        where = mixed if path == "/compression" else site
        page = visit(where + path, color_scheme=scheme, viewport={"width": 1100, "height": height})
        page.locator("#served", has_text="smollm2").wait_for()
        fill_for_show(page, path)
        page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
        name = f"{path[1:]}{'-dark' if scheme == 'dark' else ''}.png"
        page.screenshot(path=folder / name)
        made.append(folder / name)
    assert len(made) == 6
    assert all(5_000 < picture.stat().st_size < 120_000 for picture in made)
