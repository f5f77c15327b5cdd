"""`import pomona` costs next to nothing and loads no torch; the public names are pinned."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache

import pytest

PUBLIC = [
    "LanguageModel",
    "Model",
    "PomonaError",
    "RemoteModel",
    "Reply",
    "Sampling",
    "Session",
    "Tool",
    "Transcript",
    "__version__",
    "features",
    "load",
]
HEAVY = {"torch", "transformers", "peft", "trl", "accelerate", "datasets", "lm_eval", "scipy", "pandas"}
SECONDS = 0.3
ATTEMPTS = 5

REPORT = """
import json, sys, time
started = time.perf_counter()
import pomona
seconds = time.perf_counter() - started
{more}
print(json.dumps({{"seconds": seconds, "modules": sorted(name.partition(".")[0] for name in sys.modules)}}))
"""


@cache
def report(more: str = "") -> tuple[float, frozenset[str]]:
    """Seconds of the fastest `import pomona` of several fresh processes, and the top-level modules loaded
    after `more` has run too."""
    found = []
    for _ in range(1 if more else ATTEMPTS):
        done = subprocess.run(
            [sys.executable, "-c", REPORT.format(more=more)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        found.append(json.loads(done.stdout.splitlines()[-1]))
    return min(one["seconds"] for one in found), frozenset(found[0]["modules"])


def test_importing_is_quick() -> None:
    seconds, _ = report()
    assert seconds < SECONDS


def test_importing_loads_nothing_heavy() -> None:
    _, modules = report()
    assert "pomona" in modules
    assert not modules & (HEAVY | {"numpy", "tokenizers", "rich", "gguf", "pydantic", "httpx2"})


@pytest.mark.parametrize(
    "module",
    [
        "pomona.runtime.model",
        "pomona.runtime.generate",
        "pomona.runtime.session",
        "pomona.runtime.remote",
        "pomona.compression.compress",
        "pomona.compression.recover",
        "pomona.cli.recover",
        "pomona.cli.adapters",
        "pomona.adapters.export",
        "pomona.adapters.inspection",
        "pomona.adapters.rebase",
        "pomona.models.zoo",
        "pomona.evaluation.perplexity",
        "pomona.evaluation.tasks",
        "pomona.evaluation.ifeval",
        "pomona.posttraining.mdloo",
        "pomona.posttraining.itec",
        "pomona.cli.align",
        "pomona.features.writing",
        "pomona.adapters.recipes.rows",
        "pomona.cli.write",
        "pomona.cli.recipe",
        "pomona.cli.data",
        "pomona.data.mixture",
        "pomona.data.pack",
        "pomona.data.train_tokenizer",
        "pomona.data.classifier",
        "pomona.models.store",
        "pomona.models.import_gguf",
        "pomona.models.export",
        "pomona.cli.quickstart",
    ],
)
def test_no_part_of_the_core_loads_torch(module: str) -> None:
    _, modules = report(f"import {module}")
    assert not modules & HEAVY


def test_the_check_would_see_torch() -> None:
    _, modules = report("import types; sys.modules['torch'] = types.ModuleType('torch')")
    assert "torch" in modules & HEAVY


def test_public_names_are_pinned() -> None:
    import pomona

    assert sorted(pomona.__all__) == sorted(PUBLIC)
    for name in PUBLIC:
        assert getattr(pomona, name) is not None


def test_the_version_is_that_of_the_installed_package() -> None:
    from importlib.metadata import version

    import pomona

    assert version("pomona") == pomona.__version__
