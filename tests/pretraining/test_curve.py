"""The curve's file: exact numbers, cut back on resume, torn lines, foreign files; and its picture."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from pomona.errors import PomonaError
from pomona.pretraining.curve import COLUMNS, Curve, Point, read_curve
from pomona.pretraining.pretrain import draw_curve


def point(step: int, **changes: float | None) -> Point:
    values = {"loss": 1 / (3 + step), "z": 36.0, "gradient_norm": 0.1 + step, "lr": 0.01, "dropped": 0}
    values |= {"validation_loss": None, "seconds": 0.5}
    return Point(step=step, tokens=256 * step, **(values | changes))  # type: ignore[arg-type]


def test_every_digit_comes_back(tmp_path: Path) -> None:
    points = [point(1), point(2, validation_loss=0.1 + 0.2, z=None), point(3, loss=math.pi, dropped=1)]
    with Curve(tmp_path / "curve.csv") as curve:
        for one in points:
            curve.add(one)
    assert read_curve(tmp_path / "curve.csv") == points


def test_resuming_cuts_back_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "curve.csv"
    with Curve(path) as curve:
        for step in range(1, 8):
            curve.add(point(step))
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])  # killed while it wrote
    assert [one.step for one in read_curve(path)] == [1, 2, 3, 4, 5, 6]
    with Curve(path, after=4) as curve:
        for step in range(5, 8):
            curve.add(point(step))
    assert path.read_bytes() == whole


def test_a_new_curve_forgets_the_old_one(tmp_path: Path) -> None:
    for _ in range(2):
        with Curve(tmp_path / "curve.csv") as curve:
            curve.add(point(1))
    assert len(read_curve(tmp_path / "curve.csv")) == 1


@pytest.mark.parametrize("text", ["step,loss\n1,2\n", f"{','.join(COLUMNS)}\n1,2,x\n", "\xff\n"])
def test_foreign_files_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "curve.csv"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(PomonaError, match="remove it"):
        read_curve(path)


def test_no_file_is_no_point(tmp_path: Path) -> None:
    assert read_curve(tmp_path / "curve.csv") == []


def test_the_picture_is_sound_and_has_both_lines(tmp_path: Path) -> None:
    with Curve(tmp_path / "curve.csv") as curve:
        for step in range(1, 40):
            curve.add(point(step, validation_loss=0.5 if step % 10 == 0 else None))
    root = ET.fromstring(draw_curve("a < b", tmp_path).read_text(encoding="utf-8"))
    lines = root.findall("{http://www.w3.org/2000/svg}polyline")
    assert [len(line.attrib["points"].split()) for line in lines] == [39, 3]
