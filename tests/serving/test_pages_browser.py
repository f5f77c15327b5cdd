"""The pages in a real Chromium on the real model: every flow, by mouse and by keys, and no complaint."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from page_steps import (
    MAIL,
    PAGES,
    WAIT,
    Open,
    answer_with,
    copied,
    corrected,
    done,
    new_comparison,
    page_text,
)
from serving_server import Running, loaded, serving, until
from tiny_model import tiny_model

slow = pytest.mark.slow

# --- a short one, of the plain run


def test_every_page_opens_without_a_complaint(visit: Open, tmp_path: Path) -> None:
    with (
        loaded(tiny_model(tmp_path)) as tiny,
        serving(tiny, compare_db=tmp_path / "c.db", grading_db=tmp_path / "g.db") as running,
    ):
        for path in PAGES:
            # A random model was not compressed by us: its page says so, and the console notes the 404.
            page = visit(running.url + path, expected="404" if path == "/compression" else "")
            page.locator("#served", has_text="tiny").wait_for()
            assert page.locator("h1").count() == 1
        assert "compression_report.json" in page_text(
            visit(running.url + "/compression", expected="404"), "#failed"
        )
        write = visit(running.url + "/write")
        write.locator("#text").fill("She go.")
        write.locator("#text").press("Control+Enter")
        done(write)
        assert write.locator("#output").inner_text()


# --- Write


@slow
@pytest.mark.parametrize("task", ["summarize", "rewrite", "key_points", "replies"])
def test_a_text_is_worked_on_as_a_stream_and_says_who_did_it(visit: Open, site: Running, task: str) -> None:
    page = visit(f"{site.url}/write")
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
def test_options_are_those_of_the_task(visit: Open, site: Running) -> None:
    page = visit(f"{site.url}/write")
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
def test_a_correction_of_the_real_model_is_accepted_as_a_whole(visit: Open, site: Running) -> None:
    page = visit(f"{site.url}/write")
    proofread(page, MAIL)
    reply = page.request.post(f"{site.url}/v1/write/proofread", data={"text": MAIL}, timeout=WAIT).json()
    assert page.locator("#edits li").count() == len(reply["edits"])
    page.locator("#copy").click()
    assert copied(page) == MAIL  # nothing was accepted yet
    if reply["edits"]:
        page.locator("#accept-all").click()
        page.locator("#copy").click()
    assert copied(page) == reply["text"]


@slow
def test_every_edit_is_accepted_or_rejected_by_itself(visit: Open, site: Running) -> None:
    page = visit(f"{site.url}/write")
    text = "👍 " + MAIL  # a character of two units in JavaScript: places must not shift
    answer_with(page, "/v1/write/", corrected(text))
    proofread(page, text)
    page.get_by_role("button", name="Accept: becuase → because").click()
    page.get_by_role("button", name="Reject: are → is").click()
    assert page.locator("#decided").inner_text() == "2 of 3 decided"
    page.locator("#copy").click()
    assert copied(page) == text.replace("becuase", "because")
    page.locator("#accept-all").click()
    page.get_by_role("button", name="Reject: are → is").click()
    page.locator("#copy").click()
    assert copied(page) == text.replace("becuase", "because").replace("insted", "instead")
    page.locator("#reject-all").click()
    page.locator("#use").click()
    assert page.locator("#text").input_value() == text


@slow
def test_edits_are_decided_by_keys_alone(visit: Open, site: Running) -> None:
    page = visit(f"{site.url}/write")
    answer_with(page, "/v1/write/", corrected(MAIL))
    proofread(page, MAIL, keys=True)
    page.get_by_role("button", name="Accept: ").first.focus()
    for key in ("r", "a", "u", "ArrowUp", "ArrowUp"):
        page.keyboard.press(key)
    states = [page.locator("#edits li").nth(i).get_attribute("data-state") for i in range(3)]
    assert states == ["rejected", "accepted", "open"]
    assert page.evaluate("document.activeElement.getAttribute('aria-label')").startswith("Accept: becuase")
    page.locator("#copy").focus()
    page.keyboard.press("Enter")
    assert copied(page) == MAIL.replace("are away", "is away")


def proofread(page: Any, text: str, keys: bool = False) -> None:
    page.locator("#text").fill(text)
    page.locator("#task").select_option("proofread")
    if keys:
        page.locator("#text").press("Control+Enter")
    else:
        page.locator("#go").click()
    done(page)


@slow
def test_stopping_stops_the_model(visit: Open, site: Running) -> None:
    page = visit(f"{site.url}/write")
    page.locator("#text").fill("\n\n".join([MAIL] * 40))
    page.locator("#task").select_option("proofread")
    page.locator("#go").click()
    page.locator("#status", has_text="of 40").or_(page.locator("#status", has_text="Piece")).first.wait_for()
    page.keyboard.press("Escape")
    page.locator("#status", has_text="Stopped.").wait_for()
    until(site.idle)
    assert page.locator("#go").is_enabled()


# --- Chat


@slow
def test_a_conversation_has_turns_settings_and_an_end(visit: Open, site: Running) -> None:
    bodies: list[Any] = []
    page = visit(f"{site.url}/chat")
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
def test_a_long_answer_can_be_stopped(visit: Open, site: Running) -> None:
    page = visit(f"{site.url}/chat")
    page.locator("#prompt").fill("Write a very long story about a lighthouse, with many chapters.")
    page.locator("#send").click()
    page.locator(".turn.assistant .text", has_text=re.compile(r".{20}", re.DOTALL)).wait_for(timeout=WAIT)
    page.locator("#stop").click()
    page.locator("#status", has_text="Stopped.").wait_for()
    until(site.idle)
    assert "stopped" in page.locator(".turn.assistant").inner_text()
    assert page.locator("#send").is_enabled()


@slow
def test_a_setting_out_of_range_is_called_out_and_nothing_is_sent(visit: Open, site: Running) -> None:
    page = visit(f"{site.url}/chat")
    page.locator("#settings summary").click()
    page.locator("#temperature").fill("9")
    page.locator("#prompt").fill("Hello")
    page.locator("#send").click()
    assert "Temperature" in page_text(page, "#error")
    assert page.locator("#prompt").input_value() == "Hello"


# --- Adapters


@slow
def test_adapters_are_pinned_replaced_unloaded_and_loaded_live(
    visit: Open, site_dir: Path, tmp_path: Path
) -> None:
    shutil.copytree(site_dir / "adapters" / "recovery", tmp_path / "store" / "other")
    with (
        loaded(site_dir) as own,
        serving(
            own, adapter_store=tmp_path / "store", compare_db=tmp_path / "c.db", grading_db=tmp_path / "g.db"
        ) as running,
    ):
        page = visit(f"{running.url}/adapters")
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
def test_a_folder_outside_the_store_is_refused_in_words(visit: Open, site: Running) -> None:
    page = visit(f"{site.url}/adapters", expected="40[034]")
    page.locator("#name").fill("evil")
    page.locator("#path").fill("/etc")
    page.locator("#load").click()
    assert page_text(page, "#error")
    assert page.locator("#list tr", has_text="evil").count() == 0


# --- Compression


@slow
def test_the_served_model_is_analysed_and_its_budget_moved(visit: Open, site: Running) -> None:
    until(site.idle)
    page = visit(f"{site.url}/compression")
    page.locator("#analysis").wait_for(timeout=WAIT)
    report = json.loads((site.state.model.engine.directory / "compression_report.json").read_text())
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
def test_a_blind_comparison_from_the_prompt_to_the_export(visit: Open, site: Running) -> None:
    page = visit(f"{site.url}/compare")
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
def test_a_pair_without_a_vote_waits_and_is_still_blind(visit: Open, site: Running) -> None:
    page = visit(f"{site.url}/compare")
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


def exported(page: Any, control: str) -> list[Any]:
    with page.expect_download() as waiting:
        page.locator(control).click()
    assert waiting.value.suggested_filename.endswith(".jsonl")
    return [json.loads(line) for line in Path(waiting.value.path()).read_text("utf-8").splitlines()]
