"""Options and recipes: ranges, unknown keys, and that every recipe in the repository is one."""

from __future__ import annotations

from pathlib import Path

import pytest

from pomona.errors import PomonaError
from pomona.posttraining.mixture import MixtureOptions
from pomona.posttraining.options import (
    Options,
    PreferenceOptions,
    RewardOptions,
    SftOptions,
    load_yaml,
    read_recipe,
)
from pomona.posttraining.synth_code import CodeOptions
from pomona.posttraining.synth_math import MathOptions
from pomona.posttraining.synth_tools import ToolOptions

RECIPES = Path(__file__).resolve().parents[2] / "recipes" / "post"
KINDS: dict[str, type[Options]] = {
    "sft": SftOptions,
    "reward": RewardOptions,
    "dpo": PreferenceOptions,
    "ipo": PreferenceOptions,
    "mixture": MixtureOptions,
    "synth-math": MathOptions,
    "synth-tools": ToolOptions,
    "synth-code": CodeOptions,
}


def test_every_technique_has_recipes_at_both_scales_and_all_are_read() -> None:
    for technique, kind in KINDS.items():
        for scale in ("report", "laptop"):
            options = read_recipe(RECIPES / f"{technique}-{scale}.yaml", technique, kind)
            assert isinstance(options, kind)


def test_the_recipe_of_the_report_has_the_reports_values() -> None:
    options = read_recipe(RECIPES / "sft-report.yaml", "sft", SftOptions)
    assert (options.lr, options.schedule, options.dropout, options.weights) == (2e-5, "constant", 0.1, "full")
    assert read_recipe(RECIPES / "reward-report.yaml", "reward", RewardOptions).labels == "soft"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("technique: sft\noptions: {lr: 0}", "lr: Input should be greater than 0"),
        ("technique: sft\noptions: {beta: 1}", "beta: .*the keys are weights, rank"),
        ("technique: dpo\noptions: {}", "is a recipe for 'dpo', not for 'sft'"),
        ("technique: sft\nsteps: 3", "unknown key 'steps'"),
        ("technique: sft\noptions: [1]", "options is no mapping"),
        ("- sft", "holds no mapping"),
        ("technique: [sft", "no readable YAML"),
        ("!!python/object/apply:os.system ['true']", "no readable YAML"),
    ],
)
def test_a_recipe_that_is_none_is_refused_with_its_reason(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(PomonaError, match=says):
        read_recipe(path, "sft", SftOptions)


def test_a_rate_may_be_written_without_a_point(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("technique: sft\noptions: {lr: 2e-5}")
    assert read_recipe(tmp_path / "r.yaml", "sft", SftOptions).lr == 2e-5


def test_changes_win_over_a_recipe_and_are_checked() -> None:
    options = SftOptions().with_changes(lr=1e-3, rank=None)
    assert (options.lr, options.rank) == (1e-3, 16)
    assert options.digest() != SftOptions().digest()
    with pytest.raises(PomonaError, match="rank"):
        SftOptions().with_changes(rank=0)


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(PomonaError, match="no readable YAML"):
        load_yaml(tmp_path / "nothing.yaml")
