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


def test_the_pruned_recipe_has_what_the_report_says_of_it() -> None:
    """Section 3.4: a parent of 6.4 B that differs in the FFN alone, 188 B tokens for the masks, 0.9."""
    from dataclasses import replace

    parent = load_recipe(RECIPES / "report" / "parent.yaml").model.config()
    child = load_recipe(RECIPES / "report" / "pruned-on-device.yaml")
    assert parent.embedding_parameters + parent.non_embedding_parameters == pytest.approx(6.4e9, rel=0.005)
    assert child.config(child.stages[0]).intermediate_size == parent.intermediate_size
    plain = load_recipe(RECIPES / "report" / "afm-on-device.yaml")
    last, theirs = (one.result(one.stages[-1]) for one in (child, plain))
    assert last == theirs and replace(last, intermediate_size=parent.intermediate_size) != theirs
    masks, core, *later = child.stages
    assert masks.tokens == 188_000_000_000 and masks.mixture == core.mixture
    assert core.distill is not None and core.distill.weight == 0.9
    assert all(stage.distill is None for stage in later)
    assert [stage.model_dump() for stage in later] == [stage.model_dump() for stage in plain.stages[1:]]


def test_the_laptop_recipe_of_pruning_begins_where_the_other_ends() -> None:
    nano, pruned = (load_recipe(RECIPES / "laptop" / f"{name}.yaml") for name in ("afm-nano", "pruned-nano"))
    assert pruned.model == nano.model and pruned.data == nano.data
    assert pruned.stages[0].rope_theta == nano.stages[-1].rope_theta
    assert pruned.start is not None
    assert pruned.place(pruned.start) == RECIPES / "laptop" / "../../runs/nano/model"


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
        ("stages.0.prune", {"intermediate_size": 128}, "not below the 128 channels"),
        ("stages.0.prune", {"intermediate_size": 64, "temperature": [0.1, 0.2]}, "not above the first"),
        ("stages.0.prune", {"intermediate_size": 64, "ratio": 0.5}, "no recipe has this key"),
        ("stages.0.distill", {"weight": 0.9}, "teacher: Field required"),
        ("stages.0.distill", {"teacher": "x", "weight": 1.5}, "less than or equal to 1"),
        ("stages.0.distill", {"teacher": "x", "students": 2}, "no recipe has this key"),
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


def test_pruning_narrows_the_stages_after_it() -> None:
    values = settings(prune={"intermediate_size": 64})
    first = values["stages"][0]
    values["stages"] += [first | {"name": "more", "prune": {"intermediate_size": 32}}]
    values["stages"] += [first | {"name": "after", "prune": None}]
    recipe = recipe_of(values)
    assert [recipe.config(stage).intermediate_size for stage in recipe.stages] == [128, 64, 32]
    assert [recipe.result(stage).intermediate_size for stage in recipe.stages] == [64, 32, 32]


def test_masks_and_a_teacher_are_two_stages_and_masks_are_not_compiled() -> None:
    prune, distill = {"intermediate_size": 64}, {"teacher": "x"}
    with pytest.raises(ValueError, match="two stages"):
        recipe_of(settings(prune=prune, distill=distill))
    with pytest.raises(ValueError, match=r"torch\.compile"):
        recipe_of(settings(prune=prune) | {"compile": True})


def test_where_tokens_are_kept_is_no_part_of_the_identity() -> None:
    one, other, third = (
        recipe_of(settings(distill={"teacher": "x"} | more))
        for more in ({}, {"cache": "y", "batch": 3}, {"weight": 0.5})
    )
    assert one.fingerprint() == other.fingerprint() != third.fingerprint()


def test_a_recipe_without_the_newer_keys_goes_on_with_an_older_run() -> None:
    new = recipe_of(settings()).identity()
    old = {key: value for key, value in new.items() if key != "start"}
    old["stages"] = [
        {key: value for key, value in stage.items() if key not in ("prune", "distill")}
        for stage in new["stages"]
    ]
    assert difference(old, new) is None
