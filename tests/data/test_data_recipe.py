"""Recipes: what they may say, what is refused, and that those of the project can be read."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import pytest

from pomona.data.pipeline.recipe import STEPS, Recipe, first_difference, load_recipe, resolve
from pomona.errors import PomonaError

FOLDER = Path(__file__).resolve().parents[2] / "recipes" / "data"
HEAD = "name: x\ninputs:\n  - {name: a, path: p, kind: text}\n"


def test_the_projects_recipes_are_recipes() -> None:
    recipes = {path.stem: load_recipe(path) for path in FOLDER.glob("*.yaml")}
    assert len(recipes) >= 6 and all(name == recipe.name for name, recipe in recipes.items())
    kinds = {recipe.executor.kind for recipe in recipes.values()}
    assert kinds == {"local", "slurm", "ray"}
    used = {step.name for recipe in recipes.values() for step in recipe.steps}
    assert used == set(STEPS), "every step is shown in a recipe"


def test_the_reports_recipe_has_the_reports_numbers() -> None:
    [step] = [step for step in load_recipe(FOLDER / "report-web.yaml").steps if step.name == "decontaminate"]
    given = step.settings
    assert (given.shortest, given.longest, given.common, given.rule) == (4, 13, 1000, "any")


def test_a_step_is_a_name_or_a_name_with_settings(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(HEAD + "steps:\n  - pii\n  - length: {min_characters: 9}\n  - safety:\n")
    steps = load_recipe(path).steps
    assert [step.name for step in steps] == ["pii", "length", "safety"] and steps[
        1
    ].settings.min_characters == 9


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "is no YAML"),
        ("- 1", "holds no recipe"),
        ("name: x\n", "inputs: Field required"),
        (HEAD + "steps:\n  - fly: {}\n", "no step is called fly; there are extract"),
        (HEAD + "steps:\n  - pii: {}\n    length: {}\n", "a step is one name"),
        (HEAD + "steps:\n  - pii: {emails: true}\n", "Extra inputs are not permitted"),
        (HEAD + "steps:\n  - language: {min_score: 2}\n", "less than or equal to 1"),
        (HEAD + "speed: 9\n", "speed: Extra inputs"),
        (HEAD + "tasks: 0\n", "tasks: Input should be greater"),
        (HEAD + "executor: {kind: slurm}\n", "give at least its partition"),
        (HEAD.replace("kind: text", "kind: pdf"), r"inputs\.0\.kind"),
        (HEAD + "  - {name: a, path: q, kind: text}\n", "two inputs have one name"),
        (HEAD.replace("name: a", "name: ../a"), r"inputs\.0\.name"),
        (
            HEAD + "steps:\n  - decontaminate: {benchmarks: [{name: b, path: p}], shortest: 20}\n",
            "shortest is more than longest",
        ),
    ],
)
def test_what_is_wrong_is_said_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(PomonaError, match=message):
        load_recipe(path)


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PomonaError, match="cannot be read"):
        load_recipe(tmp_path / "none.yaml")
    (tmp_path / "r.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(PomonaError, match="cannot be read"):
        load_recipe(tmp_path / "r.yaml")
    (tmp_path / "big.yaml").write_text("#" * (1 << 21))
    with pytest.raises(PomonaError, match="larger than 1 MiB"):
        load_recipe(tmp_path / "big.yaml")


def test_paths_may_name_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_FOLDER", "/somewhere")
    monkeypatch.delenv("POMONA_DATA", raising=False)
    assert resolve("${MY_FOLDER}/x", tmp_path) == Path("/somewhere/x")
    assert resolve("x/y", tmp_path) == tmp_path / "x" / "y"
    assert resolve("${PYTHON_PACKAGES}", tmp_path) == Path(sysconfig.get_path("purelib"))
    with pytest.raises(PomonaError, match="POMONA_DATA is not set"):
        resolve("${POMONA_DATA}/c4", tmp_path)


def test_the_executor_is_no_part_of_what_a_recipe_is() -> None:
    value = {"name": "x", "inputs": [{"name": "a", "path": "p", "kind": "text"}], "steps": ["pii"]}
    one, other = Recipe.model_validate(value), Recipe.model_validate({**value, "executor": {"workers": 9}})
    assert (
        one.fingerprint() == other.fingerprint() != Recipe.model_validate({**value, "tasks": 2}).fingerprint()
    )


@pytest.mark.parametrize(
    ("old", "new", "place"),
    [
        ({"a": 1}, {"a": 1}, None),
        ({"a": {"b": [1, 2]}}, {"a": {"b": [1, 3]}}, "a.b.1: 2 -> 3"),
        ({"a": 1}, {"a": 1, "b": 2}, "b: was not there"),
        ({"a": 1, "b": 2}, {"a": 1}, "b: is gone"),
        ({"a": [1]}, {"a": [1, 2]}, "a: 1 entries -> 2"),
    ],
)
def test_the_first_difference_is_named(old: object, new: object, place: str | None) -> None:
    assert first_difference(old, new) == place
