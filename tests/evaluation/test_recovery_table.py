"""The recovery table: percent of the 16-bit model on the same items, with intervals that say what is open."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from pomona.errors import PomonaError
from pomona.evaluation.recovery_table import (
    OPEN,
    Cell,
    RecoveryTable,
    Row,
    TableOptions,
    contenders,
    measure,
    percent,
    shown,
)
from pomona.evaluation.results import TaskResult


def scored(values: list[float], weights: list[float] | None = None) -> TaskResult:
    items = {str(n): value for n, value in enumerate(values)}
    heavy = {} if weights is None else {str(n): weight for n, weight in enumerate(weights)}
    return TaskResult("t", "m", 0, "1", items, heavy)


def test_percent_is_the_ratio_of_the_means() -> None:
    ours, theirs = scored([1, 0, 1, 0] * 25), scored([1, 1, 1, 0] * 25)
    found = percent(ours, theirs)
    assert found.value == pytest.approx(100 * 0.5 / 0.75)
    assert found.low < found.value < found.high and found.rows == 100
    weighted = percent(scored([1, 0], [1, 3]), scored([1, 1], [1, 3]))
    assert weighted.value == pytest.approx(25.0)


def test_a_model_is_all_of_itself_without_doubt() -> None:
    """Both sides draw the same items: the ratio to itself does not move."""
    rng = np.random.default_rng(0)
    values = list((rng.random(50) < 0.4).astype(float))
    found = percent(scored(values), scored(values))
    assert (found.value, found.low, found.high) == pytest.approx((100.0, 100.0, 100.0))


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    """80 draws of items from known rates, of which one is 90% of the other."""
    rng = np.random.default_rng(1)
    inside = 0
    for _ in range(80):
        ours, theirs = (list((rng.random(100) < rate).astype(float)) for rate in (0.675, 0.75))
        found = percent(scored(ours), scored(theirs))
        inside += found.low <= 90.0 <= found.high
    assert 0.90 <= inside / 80 <= 1.0


def test_where_the_reference_can_do_nothing_there_is_no_bound() -> None:
    rare = percent(scored([1.0] + [0.0] * 19), scored([0.0] + [1.0] + [0.0] * 18))
    assert rare.value == pytest.approx(100.0) and rare.high > OPEN / 2
    assert percent(scored([1.0, 0.0]), scored([0.0, 0.0])).value == OPEN


def test_what_is_open_is_null_in_json() -> None:
    rare = percent(scored([1.0] + [0.0] * 19), scored([0.0] + [1.0] + [0.0] * 18))
    cell = Cell(rare, rare)
    row = Row("m", "recovered", "recovery", "ab", "f", 4.1, 1.0, {"ifeval": cell})
    raw = RecoveryTable((row,), {"ifeval": 20}, False, None, "2026-01-01").to_json()
    found = raw["rows"][0]["columns"]["ifeval"]["percent"]
    assert found["value"] == pytest.approx(100.0) and found["high"] is None and found["rows"] == 20


def test_the_options_name_tasks_of_the_table() -> None:
    for wrong in ({"tasks": ("mmlu",)}, {"limits": {"piqa": 3}}, {"limits": {"ifeval": 0}}, {"tasks": ()}):
        with pytest.raises(PomonaError, match="table"):
            TableOptions(**wrong)


# --- on models


@pytest.fixture(scope="module")
def recovered(smollm2_4bit_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compressed model under another name, with an adapter that changes it a little."""
    from safetensors.numpy import save_file

    target = tmp_path_factory.mktemp("models") / "other"
    shutil.copytree(smollm2_4bit_dir, target, ignore=shutil.ignore_patterns("adapters"))
    folder = target / "adapters" / "recovery"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    name = "base_model.model.model.layers.0.mlp.down_proj"
    weights = {
        f"{name}.lora_A.weight": rng.normal(0, 0.02, (4, 1536)).astype(np.float32),
        f"{name}.lora_B.weight": rng.normal(0, 0.02, (576, 4)).astype(np.float32),
    }
    save_file(weights, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": 4,
        "lora_alpha": 4,
        "target_modules": ["down_proj"],
        "layers_to_transform": [0],
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return target


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    for name in ("gsm8k", "qmsum", "ifeval"):
        (folder / name).mkdir(parents=True)
    sums = [{"question": f"What is {n} plus 1?", "answer": f"{n} + 1\n#### {n + 1}"} for n in range(8)]
    for split in ("train", "test"):
        (folder / f"gsm8k/{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in sums))
    meeting = {
        "meeting_transcripts": [{"speaker": "A", "content": "We will paint the door blue."}],
        "specific_query_list": [
            {"query": "What colour?", "answer": "The door becomes blue.", "relevant_text_span": [["0", "0"]]}
        ]
        * 3,
    }
    (folder / "qmsum/test.jsonl").write_text(json.dumps(meeting) + "\n")
    rows = [
        {
            "key": n,
            "prompt": f"Name {n} fruits without a comma.",
            "instruction_id_list": ["punctuation:no_comma"],
            "kwargs": [{}],
        }
        for n in range(3)
    ]
    (folder / "ifeval/input_data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_each_model_stands_alone_and_with_its_adapter(smollm2_4bit_dir: Path, recovered: Path) -> None:
    found = contenders(str(smollm2_4bit_dir), [str(recovered)])
    assert [(one.kind, one.adapter) for one in found] == [
        ("16 bit", "base"),
        ("compressed", "base"),
        ("recovered", "recovery"),
    ]
    assert [one.kind for one in contenders(str(smollm2_4bit_dir), [str(recovered)], "none")] == [
        "16 bit",
        "compressed",
    ]
    with pytest.raises(PomonaError, match="is the reference"):
        contenders(str(smollm2_4bit_dir), [str(smollm2_4bit_dir)])
    with pytest.raises(PomonaError, match="no model to compare"):
        contenders(str(smollm2_4bit_dir), [])


def test_the_table_is_measured_on_the_same_items_and_goes_on(
    smollm2_4bit_dir: Path, recovered: Path, data: Path, tmp_path: Path
) -> None:
    chosen = contenders(str(smollm2_4bit_dir), [str(recovered)])
    options = TableOptions(limits={"gsm8k_cot": 2, "ifeval": 2}, max_new_tokens=8)
    table = measure(chosen, data=data, work=tmp_path / "work", options=options)
    assert [row.kind for row in table.rows] == ["16 bit", "compressed", "recovered"]
    assert table.limits == {"ifeval": 2, "qmsum": 3, "gsm8k_cot": 2}
    reference, same, other = table.rows
    for task, cell in same.columns.items():  # the same weights: the same answers
        assert cell.value == reference.columns[task].value
        assert cell.percent is not None and cell.percent.value in (pytest.approx(100.0), OPEN)
    assert reference.columns["qmsum"].percent is None and other.adapter == "recovery"
    stores = sorted((tmp_path / "work").iterdir())
    before = [path.read_bytes() for path in stores]
    assert measure(chosen, data=data, work=tmp_path / "work", options=options).limits == table.limits
    assert [path.read_bytes() for path in stores] == before  # nothing was asked again
    header, lines = shown(table)
    assert header[:3] == ["model", "bits", ""] and len(lines) == 3
    assert lines[0][1] == "16" and "= 100%" in lines[0][4]
    assert json.loads(json.dumps(table.to_json()))["rows"][2]["adapter"] == "recovery"
    assert isinstance(table, RecoveryTable)
