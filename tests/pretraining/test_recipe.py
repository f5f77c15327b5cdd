"""Recipes: the shipped ones, what is refused, what makes two of them differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pretrain_samples import recipe_of, settings

from pomona.errors import PomonaError
from pomona.pretraining.recipe import LONG_ROPE_BASE, ROPE_BASE, difference, load_recipe

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
REPORT = sorted((RECIPES / "report").glob("afm-*.yaml"))


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*/afm-*.yaml")), ids=lambda path: path.name)
def test_every_shipped_recipe_is_one(path: Path) -> None:
    recipe = load_recipe(path)
    bases = [stage.rope_theta for stage in recipe.stages]
    assert bases == [ROPE_BASE, ROPE_BASE, LONG_ROPE_BASE]
    assert [stage.name for stage in recipe.stages] == ["core", "continued", "lengthening"]
    last = recipe.config(recipe.stages[-1])
    assert (last.rope_theta, last.max_position_embeddings) == (
        LONG_ROPE_BASE,
        max(4096, recipe.stages[-1].sequence_length),
    )


@pytest.mark.parametrize("path", REPORT, ids=lambda path: path.name)
def test_the_report_recipes_have_the_reports_numbers(path: Path) -> None:
    """AFM report, table of section 3.1, and the optimizer of 3.5."""
    recipe = load_recipe(path)
    core, continued, lengthening = recipe.stages
    assert (core.tokens, core.sequence_length, core.peak_lr) == (6_300_000_000_000, 4096, 0.01)
    assert (core.floor, core.warm_up, core.weight_decay) == (0.005, 5000, 3.16e-4)
    assert (continued.tokens, continued.sequence_length) == (1_000_000_000_000, 8192)
    assert (continued.peak_lr, continued.floor) == (3e-4, 0.001)
    assert (continued.warm_up, continued.weight_decay) == (1000, 1e-5)
    assert (lengthening.tokens, lengthening.sequence_length) == (100_000_000_000, 32_768)
    o = recipe.optimizer
    assert (o.kind, o.betas, o.block_clip, o.global_clip) == ("rmsprop-momentum", (0.95, 0.95), 1.0, 1.0)
    assert (o.drop_norm, o.muparam_base_width) == (100.0, 768)


def test_the_server_makes_the_reports_steps() -> None:
    core = load_recipe(RECIPES / "report" / "afm-server.yaml").stages[0]
    assert core.batch == 4096
    assert core.steps == pytest.approx(375_500, rel=1e-3)


def test_the_laptop_model_has_about_ten_million_parameters() -> None:
    from dataclasses import replace

    recipe = load_recipe(RECIPES / "laptop" / "afm-nano.yaml")
    config = replace(recipe.model.config(), vocab_size=recipe.tokenizer.vocab_size or 0)
    assert config.embedding_parameters + config.non_embedding_parameters == pytest.approx(10e6, rel=0.15)


def _changed(path: str, value: Any) -> dict[str, Any]:
    values = settings()
    place: Any = values
    *parents, last = path.split(".")
    for key in parents:
        place = place[int(key)] if key.isdigit() else place.setdefault(key, {})
    place[last] = value
    return values


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("stages.0.learning_rate", 0.1, "stages.0.learning_rate: no recipe has this key"),
        ("optimiser", {}, "optimiser: no recipe has this key"),
        ("model.preset", "afm-giant", "afm-giant: there is no such preset"),
        ("model.num_attention_heads", 3, "heads"),
        ("model.head_dim", 33, "must be even"),
        ("tokenizer.path", "x", "either path or vocab_size"),
        ("data.sources.text.files", ["x"], "exactly one"),
        ("stages.0.warm_up", 12, "not shorter than the 12 steps"),
        ("stages.0.mixture", {"web": 1.0}, "web is no source"),
        ("stages.0.mixture", {"text": 0.0}, "greater than 0"),
        ("stages.0.peak_lr", float("nan"), "finite"),
        ("stages.0.name", "../core", "pattern"),
        ("optimizer.betas", [0.9, 1.0], "less than 1"),
        ("precision", "float16", "float32"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path: Path, path: str, value: Any, said: str) -> None:
    values = _changed(path, value)
    if path == "model.num_attention_heads":
        values["model"]["num_key_value_heads"] = 2
    file = tmp_path / "bad.yaml"
    file.write_text(yaml.safe_dump(values), encoding="utf-8")
    with pytest.raises(PomonaError) as error:
        load_recipe(file)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("text", "said"), [("a: [1", "no YAML"), ("just words", "is no recipe"), ("", "is no recipe")]
)
def test_what_is_no_recipe_is_said(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(PomonaError, match=said):
        load_recipe(file)


def test_a_lower_rotary_base_than_before_is_refused(tmp_path: Path) -> None:
    values = settings()
    values["stages"] += [values["stages"][0] | {"name": "after", "rope_theta": 10_000}]
    file = tmp_path / "bad.yaml"
    file.write_text(yaml.safe_dump(values), encoding="utf-8")
    with pytest.raises(PomonaError, match="below that of core"):
        load_recipe(file)


def test_paths_start_from_the_recipes_folder(tmp_path: Path) -> None:
    values = settings()
    values["data"]["sources"]["text"] = {"files": ["deep/a.jsonl"]}
    file = tmp_path / "one.yaml"
    file.write_text(yaml.safe_dump(values), encoding="utf-8")
    assert load_recipe(file).sources()["text"].files == [tmp_path / "deep" / "a.jsonl"]
    moved = tmp_path / "elsewhere" / "one.yaml"
    moved.parent.mkdir()
    file.rename(moved)
    assert load_recipe(moved).identity() == recipe_of(values).identity()


def test_identity_is_of_what_changes_numbers() -> None:
    one = recipe_of(settings())
    assert one.fingerprint() == recipe_of(settings(save_every=5, evaluate_every=9)).fingerprint()
    other = recipe_of(settings(peak_lr=0.02))
    assert one.fingerprint() != other.fingerprint()
    assert difference(one.identity(), other.identity()) == "stages.0.peak_lr: 0.01 -> 0.02"
    assert difference(one.identity(), one.identity()) is None


def test_steps_are_rounded_up() -> None:
    stage = recipe_of(settings(tokens=8 * 32 * 12 + 1)).stages[0]
    assert (stage.steps, stage.tokens_per_step) == (13, 256)
