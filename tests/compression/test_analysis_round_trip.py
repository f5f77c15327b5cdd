"""What the analysis exports, `pomona compress` takes: the allocation shown is the allocation got."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pomona.compression.analysis import ReportFile, read_report
from pomona.compression.compress import compress

SETTINGS: dict[str, Any] = {
    "calibration": "none",
    "method": "kmeans",
    "allocation": "error",
    "table_columns": 64,
    "threads": 1,
}


@pytest.fixture(scope="module")
def mixed(tiny_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> ReportFile:
    """The report of the tiny model at a mix of widths."""
    target = tmp_path_factory.mktemp("mixed") / "model"
    compress(tiny_dir, target, bits=3.4, **SETTINGS)
    report = read_report(target)
    assert len({module.bits for module in report.modules}) > 1
    return report


def constraint_file(pins: dict[str, int], directory: Path) -> Path:
    path = directory / "constraints.json"
    path.write_text(json.dumps({"version": 1, "pins": pins}))
    return path


def test_every_module_pinned_gives_that_allocation_without_a_budget(
    mixed: ReportFile, tiny_dir: Path, tmp_path: Path
) -> None:
    pins = {module.name: module.bits for module in mixed.modules}
    compress(tiny_dir, tmp_path / "again", constraints=constraint_file(pins, tmp_path), **SETTINGS)
    again = read_report(tmp_path / "again")
    assert {module.name: module.bits for module in again.modules} == pins
    assert all(module.pinned for module in again.modules)
    assert again.file_bytes == mixed.file_bytes


def test_pins_hold_under_a_budget_that_the_rest_adapts_to(
    mixed: ReportFile, tiny_dir: Path, tmp_path: Path
) -> None:
    free = {module.name: module.bits for module in mixed.modules}
    name = next(name for name, bits in free.items() if bits == 4)
    compress(
        tiny_dir, tmp_path / "again", bits=3.4, constraints=constraint_file({name: 2}, tmp_path), **SETTINGS
    )
    again = read_report(tmp_path / "again")
    bits = {module.name: module.bits for module in again.modules}
    assert bits[name] == 2
    assert [module.name for module in again.modules if module.pinned] == [name]
    assert sum(bits[other] for other in bits if other != name) >= sum(
        free[other] for other in free if other != name
    )
