"""Two servers: the real 4-bit model with two adapters, and a small random model that answers without end; and
a Chromium for the pages."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from serving_server import Running, linked_model, loaded, serving, small_model

from pomona.models import zoo
from pomona.models.config import ModelConfig
from pomona.models.palettized import describe
from pomona.runtime.adapter_writer import write_adapter

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


def write_random_adapter(model: Path, target: Path, *, seed: int, size: float = 0.02, rank: int = 4) -> Path:
    """An adapter of `model` that changes what it says."""
    random = np.random.default_rng(seed)
    pairs = {
        module: (
            random.normal(size=(rank, columns), scale=size).astype(np.float32),
            random.normal(size=(rows, rank), scale=size).astype(np.float32),
        )
        for module, (rows, columns) in ModelConfig.from_directory(model).linear_shapes().items()
        if module.endswith(("q_proj", "v_proj", "down_proj"))
    }
    record = {"version": 1, "task": "summarize", "base_fingerprint": describe(model).fingerprint}
    return write_adapter(target, pairs, scale=2.0, record=record)


@pytest.fixture(scope="session")
def served_dir(smollm2_4bit_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real model with the adapters `recovery`, which is the default, and `shifted`."""
    folder = tmp_path_factory.mktemp("served")
    model = linked_model(smollm2_4bit_dir, folder / "smollm2-135m-4bit")
    write_random_adapter(model, model / "adapters" / "recovery", seed=1, size=0.002)
    write_random_adapter(model, model / "adapters" / "shifted", seed=2, size=0.05)
    return model


@pytest.fixture(scope="session")
def real_server(served_dir: Path) -> Iterator[Running]:
    with loaded(served_dir) as model, serving(model, deadline_seconds=120) as running:
        yield running


@pytest.fixture(scope="session")
def client(real_server: Running) -> openai.OpenAI:
    return real_server.client()


@pytest.fixture(scope="session")
def small_dir_served(smollm2_4bit_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random model with the adapters `a` and `b`."""
    model = small_model(smollm2_4bit_dir, tmp_path_factory.mktemp("small") / "small")
    for seed, name in enumerate("ab"):
        write_random_adapter(model, model / "adapters" / name, seed=seed, size=0.5)
    return model


# --- the pages


@pytest.fixture(scope="module")  # not longer: Playwright runs once at a time, and others use it too
def chromium() -> Iterator[Any]:
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


@pytest.fixture(scope="session")
def site_dir(smollm2_4bit_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real model with its compression report and its recovery adapter, as `make quickstart` leaves it. On
    a machine whose arithmetic compresses it a little otherwise: with an adapter that hardly changes it."""
    model = linked_model(smollm2_4bit_dir, tmp_path_factory.mktemp("site") / "smollm2-135m-4bit")
    shutil.copyfile(smollm2_4bit_dir / "compression_report.json", model / "compression_report.json")
    if entry := zoo.find(describe(model).fingerprint, "recovery"):
        shutil.copytree(entry.path, model / "adapters" / "recovery")
    else:
        write_random_adapter(model, model / "adapters" / "recovery", seed=1, size=0.002)
    return model


@pytest.fixture(scope="session")
def site(site_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server for the pages."""
    folder = tmp_path_factory.mktemp("stores")
    stores = {"compare_db": folder / "compare.db", "grading_db": folder / "grading.db"}
    with loaded(site_dir) as model, serving(model, **stores) as running:
        yield running


@pytest.fixture
def visit(chromium: Any) -> Iterator[Callable[..., Any]]:
    """Opens pages; fails if it complains, breaks its policy, or asks anybody else for anything."""
    complaints: list[str] = []
    asked: list[str] = []
    contexts = []
    origins: set[str] = set()

    def open_page(address: str, *, expected: str = "", **options: Any) -> Any:
        """expected: a pattern of what the console may say."""
        context = chromium.new_context(accept_downloads=True, **options)
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
    assert foreign == [] and bool(asked) == bool(contexts)  # a test that skips opens no page
