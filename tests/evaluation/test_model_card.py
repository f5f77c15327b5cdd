"""Cards of an exported model: every figure stands in a file, and no text of a file becomes markup."""

from __future__ import annotations

import json
import math
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from pomona.adapters.export_model import export_model
from pomona.compression.compress import compress
from pomona.errors import PomonaError
from pomona.evaluation.model_card import Cards
from pomona.evaluation.results import EvalResult, TaskResult, write_result
from pomona.models.palettized import describe

sys.path.insert(0, str(Path(__file__).parents[1] / "adapters"))
from adapter_samples import adapter_for, tiny_model

HOSTILE = "](javascript:alert(1)) <script>alert(1)</script> `x` | y\n# Heading\n---"
RECORD = {
    "version": 1,
    "task": "summarize",
    "license": "MIT",
    "license_note": "rows of a test",
    "data": [{"file": "rows.jsonl", "sha256": "ab" * 32, "rows": 1234, "sources": {"pomona": 1200, "x": 34}}],
    "metrics": {"validation_loss": {"before": 0.83, "after": 0.4217}, "tokens": 5678, "curve": [[0, 0.9]]},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A compressed model with a record of its source and an adapter with one of its training."""
    folder = tmp_path_factory.mktemp("models")
    directory = folder / "tiny-4bit"
    compress(tiny_model(folder / "tiny"), directory, calibration="none", table_columns=64)
    provenance = {"version": 1, "kind": "hub", "source": "someone/tiny", "license": "Apache-2.0"}
    (directory / "pomona.json").write_text(json.dumps(provenance))
    adapter_for(directory, directory / "adapters" / "summarize", seed=1)
    put_record(directory, RECORD)
    return directory


def put_record(directory: Path, record: dict[str, Any]) -> None:
    path = directory / "adapters" / "summarize" / "pomona.json"
    path.write_text(json.dumps({**record, "base_fingerprint": describe(directory).fingerprint}))


def evaluated(model: Path, path: Path, **changes: Any) -> Path:
    items = {str(n): float(n % 3 == 0) for n in range(31)}
    tasks = (
        TaskResult("ifeval", "prompt_strict", 0, "1", items),
        TaskResult("gsm8k", "flexible", 8, "3", items),
    )
    mark = describe(model).fingerprint
    one = EvalResult(
        "instruct", model.name, mark, "summarize", "ab", True, 31, "0.4.13", "2026-11-29", 9.0, tasks
    )
    write_result(replace(one, **changes), path)
    return path


def export(model: Path, target: Path, results: tuple[Path, ...] = ()) -> tuple[str, str]:
    export_model(model, target, finish=lambda written: Cards.of(model, written, results).write(written))
    return (target / "README.md").read_text(), (target / "DATA.md").read_text()


def leaves(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [leaf for key, item in value.items() for leaf in (key, *leaves(item))]
    if isinstance(value, list):
        return [leaf for item in value for leaf in leaves(item)]
    return [value]


def figures(text: str) -> list[str]:
    """Numbers of a text, without those in code, hashes, links and names of formats."""
    text = re.sub(r"```.*?```|`[^`]*`|\([^)]*\.md\)", " ", text, flags=re.DOTALL)
    return re.findall(r"(?<![\w.,-])\d[\d,]*(?:\.\d+)?(?![\w-])", text)


def test_no_figure_is_invented(model: Path, tmp_path: Path) -> None:
    """Each number is one of a file of the model, rounded as it is shown; a value also as percent."""
    result = evaluated(model, tmp_path / "result.json")
    known: list[Any] = []
    for path in [*model.rglob("*.json"), result]:
        known += leaves(json.loads(path.read_text()))
    counted = sum(math.prod(tensor.shape) for tensor in describe(model).tensors)  # the model's parameters
    numbers = [float(leaf) for leaf in known if isinstance(leaf, int | float) and not isinstance(leaf, bool)]
    words = " ".join(leaf for leaf in known if isinstance(leaf, str))
    numbers += [float(counted), 16.0, 95.0]  # the export's own form, and the intervals'
    checked = 0
    for text in export(model, tmp_path / "out", (result,)):
        body = text.split("---\n", 2)[-1]
        for token in figures(body):
            plain = token.replace(",", "")
            digits = len(plain.partition(".")[2])
            fits = any(f"{one * scale:.{digits}f}" == plain for one in numbers for scale in (1, 100))
            assert fits or re.search(rf"(?<!\d){re.escape(token)}(?!\d)", words), (token, body)
            checked += 1
    assert checked > 30


def test_the_check_of_figures_sees_an_invented_one() -> None:
    assert figures("value 97.53 % of `12` in [x](DATA.md), 16-bit, 1,234 rows") == ["97.53", "1,234"]


def test_the_metadata_are_the_hubs(model: Path, tmp_path: Path) -> None:
    result = evaluated(model, tmp_path / "result.json")
    card, _ = export(model, tmp_path / "out", (result,))
    assert card.startswith("---\n")
    head = yaml.safe_load(card.split("---\n")[1])
    assert head["license"] == "apache-2.0" and head["base_model"] == "someone/tiny"
    assert head["tags"] == ["pomona", "palettized", "lora"] and head["library_name"] == "transformers"
    [index] = head["model-index"]
    assert index["name"] == "tiny-4bit"
    values = {one["dataset"]["name"]: one["metrics"][0]["value"] for one in index["results"]}
    assert values == {"ifeval": pytest.approx(11 / 31, abs=1e-4), "gsm8k": pytest.approx(11 / 31, abs=1e-4)}
    huggingface = pytest.importorskip("huggingface_hub")
    parsed = huggingface.ModelCard(card)  # the hub's own reader
    assert parsed.data.license == "apache-2.0" and len(parsed.data.eval_results) == 2


def test_a_card_has_its_sections_and_says_what_is_not_known(model: Path, tmp_path: Path) -> None:
    card, data = export(model, tmp_path / "out")
    for title in ("Use", "Compression", "Adapters", "Evaluation", "Limits", "Safety", "Provenance"):
        assert f"\n## {title}\n" in card
    assert "No results were given" in card
    assert "1234" in data and "someone/tiny" in data and "## Not known" in data
    assert "validation\\_loss.after 0.4217" in card


def test_a_model_of_which_nothing_is_known_has_a_card_too(tmp_path: Path) -> None:
    directory = tiny_model(tmp_path / "tiny")
    card, data = export(directory, tmp_path / "out")
    head = yaml.safe_load(card.split("---\n")[1])
    assert head["license"] == "other" and "base_model" not in head and head["tags"] == ["pomona"]
    assert "never compressed" in card and "not recorded in the model's files" in data


def test_texts_of_files_are_text(model: Path, tmp_path: Path) -> None:
    rows = [{"file": HOSTILE, HOSTILE: {"a": [HOSTILE]}}]
    hostile = {**RECORD, "task": HOSTILE, "license": HOSTILE, "data": rows}
    put_record(model, hostile)
    try:
        result = evaluated(model, tmp_path / "result.json", suite=HOSTILE, adapter=HOSTILE, date=HOSTILE)
        card, data = export(model, tmp_path / "out", (result,))
    finally:
        put_record(model, RECORD)
    for text in (card, data):
        body = text.split("---\n", 2)[-1] if text.startswith("---") else text
        assert "<script>" not in body.replace("\\<script\\>", "")
        assert "\n# Heading" not in text and not re.search(r"(?<!\\)\]\(javascript:", text)
    assert yaml.safe_load(card.split("---\n")[1])["license"] == "apache-2.0"


def test_a_result_of_another_model_is_refused_and_nothing_is_written(model: Path, tmp_path: Path) -> None:
    result = evaluated(model, tmp_path / "result.json", fingerprint="another")
    with pytest.raises(PomonaError, match="fingerprint another"):
        export(model, tmp_path / "out", (result,))
    assert not (tmp_path / "out").exists()
