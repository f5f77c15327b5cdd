"""The page in a real browser, from a file: slider, pins, keys, the download, the theme, and no complaint."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from analysis_samples import OTHER_BYTES, report_json, sample_analysis, with_fixed_embedding
from test_analysis_page import HOSTILE, least_loss

from pomona.compression.analysis import Analysis
from pomona.compression.analysis_page import render_page
from pomona.compression.constraints import read_constraints

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
DOWN, Q2 = "model.layers.1.mlp.down_proj", "model.layers.2.self_attn.q_proj"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed; pip install 'pomona[browser]'"
    )
    program = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip("no Chromium is installed; apt-get install chromium")
    with playwright.sync_playwright() as running:
        opened = running.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield opened
        opened.close()


Open = Callable[..., Any]


@pytest.fixture
def show(browser: Any, tmp_path: Path) -> Iterator[Open]:
    """Opens the page of an analysis from a file; fails if anything is loaded or complained about."""
    complaints: list[str] = []
    loaded: list[str] = []
    contexts = []

    def show_page(analysis: Analysis | None = None, **options: Any) -> Any:
        path = tmp_path / "report.html"
        path.write_text(render_page((analysis or sample_analysis()).to_json()), encoding="utf-8")
        context = browser.new_context(accept_downloads=True, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: (complaints.append("a dialog"), dialog.dismiss()))
        page.on("request", lambda request: loaded.append(request.url))
        page.goto(path.as_uri())
        return page

    yield show_page
    for context in contexts:
        context.close()
    assert complaints == []
    assert loaded and {url for url in loaded if not url.startswith("blob:")} == {
        (tmp_path / "report.html").as_uri()
    }


def value(page: Any, name: str) -> float:
    return float(page.locator(f"#{name}").get_attribute("data-value"))


def move(page: Any, step: int) -> None:
    page.locator("#budget").fill(str(step))


def cell(page: Any, name: str) -> Any:
    return page.locator(f'#map td[aria-label^="{name}:"]')


def downloaded(page: Any) -> Any:
    with page.expect_download() as waiting:
        page.locator("#export").click()
    assert waiting.value.suggested_filename == "constraints.json"
    return json.loads(Path(waiting.value.path()).read_text(encoding="utf-8"))


def test_it_opens_with_the_model_as_it_is(show: Open) -> None:
    analysis = sample_analysis()
    page = show(analysis)
    assert page.title().startswith("smol")
    assert value(page, "size") == analysis.report.file_bytes
    assert value(page, "speed") == pytest.approx(1e9 / analysis.profile.token_ns)
    assert value(page, "loss") == pytest.approx(analysis.report.predicted_kl)
    assert page.locator("#tensors tbody tr").count() == len(analysis.report.modules)


def test_the_slider_shows_size_speed_and_loss_of_the_best_allocation(show: Open) -> None:
    modules = sample_analysis().to_json()["modules"]
    least, most = (sum(f(c["bytes"] for c in m["choices"]) for m in modules) for f in (min, max))
    page = show()
    seen = []
    for step in (0, 130, 470, 800, 1000):
        move(page, step)
        budget = least + round((most - least) * step / 1000)
        assert value(page, "loss") == pytest.approx(least_loss(modules, budget, {}), rel=1e-9)
        assert value(page, "size") <= budget + OTHER_BYTES
        seen.append((value(page, "size"), value(page, "loss"), value(page, "speed")))
    sizes, losses, speeds = zip(*seen, strict=True)
    assert list(sizes) == sorted(sizes) and list(losses) == sorted(losses, reverse=True)
    assert speeds[0] > speeds[-1]
    page.get_by_role("button", name="Back to the model as it is").click()
    assert value(page, "size") == sample_analysis().report.file_bytes


def test_arrow_keys_move_the_slider_and_its_text_says_what_it_means(show: Open) -> None:
    page = show()
    before = value(page, "size")
    page.locator("#budget").focus()
    for _ in range(60):
        page.keyboard.press("ArrowLeft")
    assert value(page, "size") < before
    assert "tokens per second" in page.locator("#budget").get_attribute("aria-valuetext")


def test_a_pin_holds_while_the_rest_is_solved_again(show: Open) -> None:
    modules = sample_analysis().to_json()["modules"]
    page = show()
    cell(page, DOWN).click()
    page.get_by_role("group", name="Pin this module").get_by_role("button", name="2 bits").click()
    for step in (300, 900):
        move(page, step)
        assert cell(page, DOWN).inner_text() == "2"
        assert "pinned" in cell(page, DOWN).get_attribute("class")
    least, most = (sum(f(c["bytes"] for c in m["choices"]) for m in modules) for f in (min, max))
    budget = least + round((most - least) * 0.9)
    assert value(page, "loss") == pytest.approx(least_loss(modules, budget, {DOWN: 2}), rel=1e-9)


def test_the_map_is_walked_and_pinned_by_keys_alone(show: Open) -> None:
    page = show()
    cell(page, "model.layers.1.mlp.up_proj").focus()
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')").startswith(DOWN)
    page.keyboard.press("2")
    assert downloaded(page)["pins"] == {DOWN: 2}
    cell(page, DOWN).focus()
    page.keyboard.press("8")  # which is no choice of this module: the pin stays
    assert "no choice of 8 bits" in page.locator("#pins").inner_text()
    assert downloaded(page)["pins"] == {DOWN: 2}
    cell(page, DOWN).focus()
    page.keyboard.press("Delete")
    assert downloaded(page)["pins"] == {}


def test_the_download_is_the_constraint_file_that_compress_takes(show: Open, tmp_path: Path) -> None:
    page = show()
    for name, key in ((DOWN, "4"), (Q2, "2")):
        cell(page, name).click()
        page.keyboard.press(key)
    assert downloaded(page) == {"version": 1, "pins": {DOWN: 4, Q2: 2}}
    assert "--constraints constraints.json" in page.locator("#command").inner_text()
    page.get_by_label("every module as shown").check()
    constraints = downloaded(page)
    pins, names = constraints["pins"], [module.name for module in sample_analysis().report.modules]
    (tmp_path / "constraints.json").write_text(json.dumps(constraints))
    assert read_constraints(tmp_path / "constraints.json", names) == pins
    assert len(pins) == len(names)
    assert (pins[DOWN], pins[Q2]) == (4, 2)


def test_pins_that_no_budget_of_that_size_allows_are_called_out(show: Open) -> None:
    page = show()
    cell(page, "model.embed_tokens").click()
    page.keyboard.press("8")
    move(page, 0)
    assert "need" in page.locator("#infeasible").inner_text()
    move(page, 1000)
    assert page.locator("#infeasible").is_hidden()


def test_the_table_sorts_by_any_column_and_filters_by_name(show: Open) -> None:
    page = show()
    names = page.locator("#tensors tbody tr:visible td:first-child")
    heading = page.locator("#tensors thead").get_by_role("button", name="bytes")
    heading.click()
    assert names.first.inner_text() == "model.embed_tokens"
    assert page.locator("#tensors th[aria-sort]").get_attribute("aria-sort") == "descending"
    heading.click()
    assert names.first.inner_text().endswith(("k_proj", "v_proj"))
    page.locator("#filter").fill("layers.1.")
    assert names.count() == 7


@pytest.mark.parametrize("colour", ["loss", "ns", "relative_error"])
def test_the_map_is_coloured_by_what_is_asked_for(show: Open, colour: str) -> None:
    page = show()
    before = cell(page, DOWN).evaluate("(e) => [e.textContent, getComputedStyle(e).backgroundColor]")
    page.locator(f'#colour input[value="{colour}"]').check()
    assert cell(page, DOWN).evaluate("(e) => [e.textContent, getComputedStyle(e).backgroundColor]") != before
    assert page.locator("#legend i").count() == 5


def test_it_is_dark_where_the_system_is_and_on_request(show: Open) -> None:
    def brightness(page: Any) -> int:
        found = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
        return int(sum(found))

    dark, light = show(color_scheme="dark"), show(color_scheme="light")
    assert brightness(dark) < 150 < 600 < brightness(light)
    light.get_by_role("button", name="Dark").click()
    assert brightness(light) < 150
    assert light.get_by_role("button", name="Dark").get_attribute("aria-pressed") == "true"


def test_names_with_markup_are_shown_as_they_are(show: Open) -> None:
    raw = report_json()
    name = HOSTILE + ".layers.0.q_proj"
    raw["modules"][1]["name"] = raw["modules"][1]["kind"] = name
    page = show(sample_analysis(raw, model=HOSTILE))
    assert page.locator("#model").inner_text().startswith("</script>")
    assert page.locator("script").count() == 2 and page.locator("b").count() == 0
    shown = page.locator("#tensors tbody td:first-child").all_text_contents()
    assert name in shown
    page.locator("#tensors tbody tr", has_text="名前").locator("button").click()
    assert page.locator("#detail-name").text_content() == name


def test_every_control_has_a_name_that_a_screen_reader_can_say(show: Open) -> None:
    page = show()
    cell(page, DOWN).click()
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("button, input, td[data-place]")].filter((e) =>
             !(e.textContent.trim() || e.getAttribute("aria-label") || e.labels?.length)).length"""
    )
    assert nameless == 0
    assert page.locator('#map td[tabindex="0"]').count() == 1  # one stop for the tab key


def test_what_has_no_choice_is_shown_but_neither_pinned_nor_exported(show: Open) -> None:
    page = show(sample_analysis(with_fixed_embedding()))
    cell(page, "model.embed_tokens").click()
    page.keyboard.press("8")
    assert "one form" in page.locator("#pins").inner_text()
    page.get_by_label("every module as shown").check()
    assert len(downloaded(page)["pins"]) == 21
    assert "model.embed_tokens" in page.locator("#tensors").inner_text()


def test_a_report_of_one_choice_each_says_how_to_get_more(show: Open) -> None:
    raw = with_fixed_embedding()
    for module in raw["modules"]:
        module["choices"] = [c for c in module["choices"] if c["bits"] == module["bits"]]
        module["choices"][0]["kl"] = None
    raw["predicted_kl"] = None
    page = show(sample_analysis(raw))
    assert page.locator("#budget").is_disabled()
    assert "--bits 3.5" in page.locator("#how").inner_text()
    assert "squared relative errors" in page.locator("#loss-name").inner_text()
