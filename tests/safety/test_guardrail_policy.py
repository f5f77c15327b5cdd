"""The policy: thresholds per category and feature, what is refused, what is told, what a wrong file says."""

from __future__ import annotations

from pathlib import Path

import pytest

from pomona.errors import PomonaError
from pomona.safety.guardrail import Verdict
from pomona.safety.guardrail_head import GuardrailHead
from pomona.safety.guardrail_policy import Blocked, GuardrailPolicy

HEAD = GuardrailHead.new().model_copy(
    update={"thresholds": {"input": {"0.05": 0.6, "0.01": 0.9, "0.2": 0.2}, "output": {"0.05": 0.7}}}
)


def policy(tmp_path: Path, text: str) -> GuardrailPolicy:
    path = tmp_path / "policy.yaml"
    path.write_text(text)
    return GuardrailPolicy.read(path)


def verdict(harm: float, side: str = "input", **categories: float) -> Verdict:
    shares = categories or {"weapons": harm}
    return Verdict(side, harm, tuple(sorted(shares.items(), key=lambda item: -item[1])))  # type: ignore[arg-type]


def test_without_a_word_the_guardrails_own_threshold_counts() -> None:
    rules = GuardrailPolicy()
    assert rules.refused("chat", verdict(0.59), HEAD) is None
    refusal = rules.refused("chat", verdict(0.6), HEAD)
    assert refusal is not None
    assert (refusal.side, refusal.category, refusal.harm, refusal.threshold) == ("input", "weapons", 0.6, 0.6)
    assert refusal.message == (
        "I cannot help with this. The request was taken for weapons and dangerous materials."
    )
    assert rules.refused("chat", verdict(0.65, "output"), HEAD) is None
    assert rules.refused("chat", verdict(0.7, "output"), HEAD) is not None


def test_a_feature_has_its_own_rules_and_the_others_the_default(tmp_path: Path) -> None:
    rules = policy(
        tmp_path,
        "default: {input: {threshold: 0.3}}\n"
        "suspects: 0.20\nfeatures:\n  summarize: {input: off, output: {threshold: 0.95}}\n"
        "  rewrite: {input: {false_positives: 0.01}}\n",
    )
    bad, worse = verdict(0.5), verdict(0.92)
    assert rules.refused("chat", bad, HEAD) is not None
    assert rules.refused("summarize", verdict(1.0), HEAD) is None
    assert rules.refused("summarize", verdict(0.94, "output"), HEAD) is None
    assert rules.refused("summarize", verdict(0.96, "output"), HEAD) is not None
    assert rules.refused("rewrite", bad, HEAD) is None and rules.refused("rewrite", worse, HEAD) is not None


def test_a_category_has_a_threshold_of_its_own_or_does_not_count(tmp_path: Path) -> None:
    rules = policy(
        tmp_path, "default: {input: {threshold: 0.5, categories: {weapons: 0.2, graphic_violence: off}}}\n"
    )
    assert rules.refused("chat", verdict(0.3, weapons=0.28, hate=0.02), HEAD) is not None
    assert rules.refused("chat", verdict(0.3, hate=0.28, weapons=0.02), HEAD) is None
    assert rules.refused("chat", verdict(0.9, graphic_violence=0.9), HEAD) is None
    shared = verdict(0.9, graphic_violence=0.3, hate=0.6)
    refusal = rules.refused("chat", shared, HEAD)
    assert refusal is not None and refusal.category == "hate" and refusal.harm == pytest.approx(0.6)


def test_phrases_refuse_and_say_of_which_category(tmp_path: Path) -> None:
    (tmp_path / "list.yaml").write_text(
        "version: 1\ndeny: [{phrase: blue gizmo, category: illegal.theft, in: output}]\n"
    )
    rules = policy(
        tmp_path,
        f"default:\n  patterns: [{tmp_path / 'list.yaml'}]\n  message: 'No: {{side}}, {{category}}'\n",
    )
    assert rules.denied("chat", "input", "a blue gizmo") is None
    refusal = rules.denied("chat", "output", "a blue gizmo")
    assert refusal is not None and refusal.harm is None
    assert (refusal.phrase, refusal.message) == ("blue gizmo", "No: answer, illegal activities")
    assert "No: answer" in str(Blocked(refusal))


def test_suspects_are_the_most_suspicious_inputs(tmp_path: Path) -> None:
    rules = policy(tmp_path, "suspects: '0.2'\n")
    assert rules.suspicious(verdict(0.2), HEAD) and not rules.suspicious(verdict(0.19), HEAD)
    assert rules.suspicious(None, HEAD)  # an input that nobody judged
    assert GuardrailPolicy().suspicious(verdict(0.0), HEAD)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("treshold: 1\n", "Extra inputs"),
        ("default: {input: {treshold: 1}}\n", "Extra inputs"),
        ("default: {input: {threshold: 1.5}}\n", "less than or equal to 1"),
        ("default: {input: on}\n", "default.input"),
        ("default: {input: {categories: {nonsense: 0.5}}}\n", "no category"),
        ("default: {message: 'No: {reason}'}\n", "side"),
        ("default: {patterns: [nobody]}\n", "no such list"),
        ("suspects: '0.3'\n", "suspects"),
        ("segment: 1\n", "segment"),
        ("- a\n", "no mapping"),
    ],
)
def test_a_wrong_policy_is_refused_by_its_place(tmp_path: Path, text: str, wrong: str) -> None:
    with pytest.raises(PomonaError, match=wrong):
        policy(tmp_path, text)


def test_a_threshold_that_the_guardrail_does_not_know_is_an_error() -> None:
    bare = GuardrailHead.new()
    with pytest.raises(PomonaError, match="knows no threshold"):
        GuardrailPolicy().refused("chat", verdict(0.9), bare)
