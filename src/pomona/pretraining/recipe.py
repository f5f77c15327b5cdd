"""A pre-training recipe: model, tokenizer, text, optimizer and stages, as one YAML file.

    recipe = load_recipe(Path("recipes/laptop/afm-nano.yaml"))

The values of the AFM report are the defaults where it gives one (section 3). Unknown keys are refused, and so
is what contradicts itself, before anything is computed. Relative paths start from the recipe's folder, so
that recipe and text may move together.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    field_validator,
    model_validator,
)

from pomona.errors import PomonaError
from pomona.models.config import ModelConfig
from pomona.models.presets import preset

Count = Annotated[int, Field(ge=1, le=1 << 50)]
Positive = Annotated[float, Field(gt=0, lt=1e9, allow_inf_nan=False)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]

ROPE_BASE, LONG_ROPE_BASE = 500_000.0, 6_315_089.0  # AFM report, sections 1.1 and 3.7


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelSettings(_Strict):
    """A preset, and the sizes in which this model differs from it."""

    preset: str
    hidden_size: Count | None = None
    intermediate_size: Count | None = None
    num_hidden_layers: Count | None = None
    num_attention_heads: Count | None = None
    num_key_value_heads: Count | None = None
    head_dim: Count | None = None

    def config(self) -> ModelConfig:
        """The shape, still with the preset's vocabulary. PomonaError for an unknown preset or a bad shape."""
        sizes = self.model_dump(exclude={"preset"}, exclude_none=True)
        return replace(preset(self.preset), **sizes)


class TokenizerSettings(_Strict):
    """`path`: a model directory whose tokenizer is taken. `vocab_size`: train one so large on the text."""

    path: Path | None = None
    vocab_size: Annotated[int, Field(ge=300, le=1 << 20)] | None = None

    @model_validator(mode="after")
    def _one(self) -> TokenizerSettings:
        if (self.path is None) == (self.vocab_size is None):
            raise ValueError("give either path or vocab_size")
        return self


class SourceSettings(_Strict):
    """Where the text of one source comes from: exactly one of the first four.

    packed: a folder that `pomona data pack` made. files: text or JSONL files, or folders of them. public:
    corpora in the folder that POMONA_DATA names. packages: documentation of what is installed here.
    optional: left out, with a note, where its text is not there. max_mb: of text, at the most.
    """

    packed: Path | None = None
    files: list[Path] | None = Field(default=None, min_length=1)
    public: list[str] | None = Field(default=None, min_length=1)
    packages: list[Literal["python", "debian"]] | None = Field(default=None, min_length=1)
    optional: bool = False
    max_mb: Positive = 64.0

    @model_validator(mode="after")
    def _one(self) -> SourceSettings:
        given = [name for name in ("packed", "files", "public", "packages") if getattr(self, name)]
        if len(given) != 1:
            raise ValueError("give exactly one of packed, files, public, packages")
        return self


class DataSettings(_Strict):
    """Sources by name. validation_share: of the documents, held out by their hash, where text is packed here.
    validation: packed folders for runs whose sources are packed already."""

    sources: dict[Name, SourceSettings] = Field(min_length=1)
    validation_share: Annotated[float, Field(gt=0, lt=0.5)] = 0.02
    validation: dict[Name, Path] = {}


class OptimizerSettings(_Strict):
    """The report's optimizer, or AdamW as its baseline (table 5), with what is common to both."""

    kind: Literal["rmsprop-momentum", "adamw"] = "rmsprop-momentum"
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.95, 0.95)
    block_clip: Positive = 1.0
    global_clip: Positive = 1.0
    drop_norm: Positive = 100.0  # a step whose gradient has this norm or more is dropped (AXLearn)
    muparam_base_width: Count | None = 768


class PruneSettings(_Strict):
    """The FFN narrowed by learned masks (docs/pruning.md). The report gives method and tokens (section 3.4);
    every number here is ours.

    intermediate_size: FFN channels that are kept, in every layer. temperature: of the Soft-Top-K, at the
    start and at its end. shrink: share of the steps in which the budget falls from the whole width to
    intermediate_size. harden: share of the steps after which the temperature has come to its end.
    """

    intermediate_size: Count
    temperature: tuple[Positive, Positive] = (0.1, 0.005)
    shrink: Annotated[float, Field(gt=0, le=1)] = 0.4
    harden: Annotated[float, Field(gt=0, le=1)] = 0.8

    @model_validator(mode="after")
    def _falls(self) -> PruneSettings:
        if self.temperature[1] > self.temperature[0]:
            raise ValueError("temperature: the second is the end and not above the first")
        return self


class DistillSettings(_Strict):
    """A stage taught by a teacher's likeliest tokens (section 3.4; docs/distillation.md).

    teacher: a model directory with the same tokenizer. weight: of its token, against the true one. cache:
    the folder that keeps its tokens; the default is `teacher` in the run's folder. batch: sequences per
    pass of the teacher.
    """

    teacher: Path
    weight: Annotated[float, Field(gt=0, le=1)] = 0.9
    cache: Path | None = None
    batch: Count = 8


class StageSettings(_Strict):
    """One stage. Sizes are of the whole job: `batch` sequences of one step over all devices."""

    name: Name
    tokens: Count
    sequence_length: Annotated[int, Field(ge=8, le=1 << 20)]
    batch: Count
    micro_batch: Count | None = None  # sequences per device and pass; the default is the whole share
    peak_lr: Positive
    floor: Annotated[float, Field(ge=0, le=1)]  # of the peak, at the end
    warm_up: Annotated[int, Field(ge=0)]  # steps
    weight_decay: Annotated[float, Field(ge=0, lt=1)]
    rope_theta: Annotated[float, Field(ge=1, le=1e15)] = ROPE_BASE
    mixture: dict[Name, Positive] = Field(min_length=1)
    evaluate_every: Count = 500  # steps
    save_every: Count = 1000
    activation_checkpointing: bool = False
    prune: PruneSettings | None = None
    distill: DistillSettings | None = None

    @property
    def tokens_per_step(self) -> int:
        return self.batch * self.sequence_length

    @property
    def steps(self) -> int:
        """Steps that read `tokens`, rounded up."""
        return -(-self.tokens // self.tokens_per_step)

    @model_validator(mode="after")
    def _fits(self) -> StageSettings:
        if self.warm_up >= self.steps:
            raise ValueError(f"warm_up of {self.warm_up} steps is not shorter than the {self.steps} steps")
        if self.prune is not None and self.distill is not None:
            raise ValueError("prune and distill: masks are learned on the text alone; make them two stages")
        return self


class Recipe(_Strict):
    """The whole file."""

    name: Name
    seed: Annotated[int, Field(ge=0, lt=1 << 31)] = 0
    model: ModelSettings
    start: Path | None = None  # a model directory of that shape, whose weights the first stage begins with
    tokenizer: TokenizerSettings
    data: DataSettings
    optimizer: OptimizerSettings = OptimizerSettings()
    stages: list[StageSettings] = Field(min_length=1)
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    compile: bool = False
    z_loss: Annotated[float, Field(ge=0, lt=1)] = 1e-6
    evaluation_windows: Count = 64
    keep_checkpoints: Count = 2
    sample: Annotated[str, Field(min_length=1, max_length=1000)] = "The"  # continued at the end

    _folder: Path = PrivateAttr(default=Path())  # of the file: not part of what the recipe is

    @field_validator("stages")
    @classmethod
    def _stages(cls, stages: list[StageSettings]) -> list[StageSettings]:
        if len({stage.name for stage in stages}) != len(stages):
            raise ValueError("two stages have the same name")
        for one, following in pairwise(stages):
            if following.rope_theta < one.rope_theta:
                raise ValueError(f"{following.name}: its rope_theta is below that of {one.name}")
        return stages

    @model_validator(mode="after")
    def _names(self) -> Recipe:
        for stage in self.stages:
            if unknown := sorted(set(stage.mixture) - set(self.data.sources)):
                raise ValueError(f"stage {stage.name}: {unknown[0]} is no source of data")
        if self.compile and any(stage.prune for stage in self.stages):
            raise ValueError("compile: masks are hooks, which torch.compile does not follow; leave it out")
        return self

    def place(self, path: Path) -> Path:
        """A path of the recipe, from where the recipe lies."""
        return (self._folder / path.expanduser()).absolute()

    def sources(self) -> dict[str, SourceSettings]:
        """The sources with their paths as `place` gives them."""
        found = {}
        for name, one in self.data.sources.items():
            packed = None if one.packed is None else self.place(one.packed)
            files = None if one.files is None else [self.place(path) for path in one.files]
            found[name] = one.model_copy(update={"packed": packed, "files": files})
        return found

    def config(self, stage: StageSettings) -> ModelConfig:
        """The model that the stage trains: rotary base and longest position are the stage's, the FFN's width
        is what the pruning of earlier stages left of it."""
        found = self.model.config()
        before = self.stages[: self.stages.index(stage)]
        longest = max(one.sequence_length for one in [*before, stage])
        return replace(
            found,
            rope_theta=stage.rope_theta,
            max_position_embeddings=max(found.max_position_embeddings, longest),
            intermediate_size=_narrowed(found.intermediate_size, before),
        )

    def result(self, stage: StageSettings) -> ModelConfig:
        """The model that the stage leaves: narrower, if it prunes."""
        trained = self.config(stage)
        return replace(trained, intermediate_size=_narrowed(trained.intermediate_size, [stage]))

    def identity(self) -> dict[str, Any]:
        """All that the result depends on, as plain JSON."""
        free = {"keep_checkpoints", "sample", "stages"}  # what is kept, and how often, changes no number
        per_stage: dict[str, Any] = {
            "evaluate_every": True,
            "save_every": True,
            "distill": {"cache", "batch"},
        }
        found: dict[str, Any] = json.loads(self.model_dump_json(exclude=free))
        found["stages"] = [json.loads(stage.model_dump_json(exclude=per_stage)) for stage in self.stages]
        return found

    def fingerprint(self) -> str:
        """SHA-256 of the identity."""
        return hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()


def load_recipe(path: Path) -> Recipe:
    """The recipe in a YAML file. PomonaError names the key that is wrong, missing or not known."""
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PomonaError(f"{path}: cannot be read ({error}); give the path of a recipe") from error
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f"line {where.line + 1}" if where else "somewhere"
        raise PomonaError(f"{path}: is no YAML ({line}); correct it") from error
    if not isinstance(value, dict):
        raise PomonaError(f"{path}: is no recipe, which has keys such as name, model and stages; correct it")
    try:
        recipe = Recipe.model_validate(value)
    except ValidationError as error:
        raise PomonaError(f"{path}: {_first(error)}") from error
    try:
        recipe.result(recipe.stages[-1])  # a shape that cannot be is said now
    except PomonaError as error:
        raise PomonaError(f"{path}: {error}") from error
    recipe._folder = path.parent
    return recipe


def _narrowed(width: int, stages: Sequence[StageSettings]) -> int:
    """The FFN's width after these stages. PomonaError if one would keep more than there is."""
    for stage in stages:
        if stage.prune is not None:
            if stage.prune.intermediate_size >= width:
                raise PomonaError(
                    f"stage {stage.name}: prune.intermediate_size {stage.prune.intermediate_size} is not "
                    f"below the {width} channels that there are; give less"
                )
            width = stage.prune.intermediate_size
    return width


def difference(old: Any, new: Any, place: str = "") -> str | None:
    """Where two identities first differ, as "stages.0.peak_lr: 0.01 -> 0.02"; None if they are equal."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(key for key in new if key not in old)]:
            found = difference(old.get(key), new.get(key), f"{place}.{key}" if place else key)
            if found is not None:
                return found
        return None
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for number, (a, b) in enumerate(zip(old, new, strict=True)):
            if (found := difference(a, b, f"{place}.{number}")) is not None:
                return found
        return None
    return None if old == new else f"{place}: {json.dumps(old)[:80]} -> {json.dumps(new)[:80]}"


def _first(error: ValidationError) -> str:
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"{place}: no recipe has this key; remove it, or correct its spelling"
    text = first["msg"].removeprefix("Value error, ")
    return f"{place}: {text}; correct it" if place else f"{text}; correct it"
