"""Mathematics is found by the tags of a page, by LaTeX, and by symbols; prose about numbers is none."""

from __future__ import annotations

import random

import pytest

pytest.importorskip("datatrove")

from pipeline_samples import filtered, prose

from pomona.data.pipeline.mathematics import KeepMathematics, count_tags, symbols_per_thousand
from pomona.data.pipeline.recipe import Mathematics

LATEX = (
    r"Let $f$ be continuous. Then \[ \int_0^1 f(x)\,dx \leq \sup |f| \] and "
    r"\(\sum_{n} \frac{1}{n^2} = \frac{\pi^2}{6}\)."
)
UNICODE = "For all x ∈ ℝ and ε > 0 there is δ > 0 with |f(x) − f(y)| ≤ ε, so ∀n: ∑ aₙ ≥ ∫ f."
NUMBERS = (
    "In 2019 sales rose by 3.5% to $1,200,000, or 12 + 5 units per person (see table 4). It was 20° warm. "
)


@pytest.mark.parametrize(
    "tag",
    [
        '<math xmlns="http://www.w3.org/1998/Math/MathML">',
        '<script src="mathjax.js">',
        '<span class="katex">',
        '<span class="mwe-math-element">',
        '<img alt="$x^2$">',
        '<annotation encoding="application/x-tex">',
        r"\begin{align*}",
    ],
)
def test_tags(tag: str) -> None:
    assert count_tags(f"<p>text</p>{tag}<p>text</p>") >= 1


def test_pages_without_mathematics_have_no_tags() -> None:
    assert count_tags("<html><p class='aftermath'>The aftermath, for $5.</p></html>") == 0


def test_mathematics_is_kept_and_prose_is_not() -> None:
    texts = [LATEX, UNICODE, NUMBERS, prose(random.Random(1)), "Το βιβλίο είναι εδώ και το διαβάζω. " * 5]
    found = filtered(KeepMathematics(Mathematics()), texts)
    assert [kept for kept, _ in found] == [True, True, False, False, False]
    assert found[2][1] == "not_mathematics"
    others = filtered(KeepMathematics(Mathematics(keep="other")), texts)
    assert [kept for kept, _ in others] == [False, False, True, True, True]


def test_the_tags_that_extraction_noted_count() -> None:
    block = KeepMathematics(Mathematics(min_tags=3))
    assert filtered(block, [{"text": NUMBERS, "math_tags": 3}, {"text": NUMBERS, "math_tags": 2}]) == [
        (True, None),
        (False, "not_mathematics"),
    ]


def test_symbols_are_counted_per_thousand_characters() -> None:
    assert symbols_per_thousand("a" * 998 + "∑∫") == pytest.approx(2.0)
    assert symbols_per_thousand("") == 0
