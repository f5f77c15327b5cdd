"""Pictures of lines: sound XML, points where they belong."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET

import pytest

from pomona.line_chart import Line, line_chart

SVG = "{http://www.w3.org/2000/svg}"


def test_points_of_a_picture_lie_where_they_belong() -> None:
    picture = line_chart("t", "x", "y", [Line("a", ((1.0, 1.0), (10.0, 2.0), (100.0, 3.0)))], log_x=True)
    places = ET.fromstring(picture).find(f"{SVG}polyline")
    assert places is not None
    (x1, y1), (x2, y2), (x3, y3) = (map(float, p.split(",")) for p in places.attrib["points"].split())
    assert x2 - x1 == pytest.approx(x3 - x2, abs=0.2) and y1 - y2 == pytest.approx(y2 - y3, abs=0.2)
    assert x1 < x2 and y1 > y2


def test_a_picture_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no points"):
        line_chart("t", "x", "y", [Line("a", ((1.0, float("nan")),))])


def test_hints_stay_with_their_dots_when_a_point_is_left_out() -> None:
    line = Line("a < b", ((1.0, 1.0), (2.0, math.nan), (3.0, 2.0)), dots=True, hints=("one", "lost", "3 < 4"))
    root = ET.fromstring(line_chart("t", "x", "y", [line]))
    dots = root.findall(f"{SVG}circle")
    assert [dot.findtext(f"{SVG}title") for dot in dots] == ["one", "3 < 4"]
    assert float(dots[0].attrib["cx"]) < float(dots[1].attrib["cx"])
