"""What a training run of post-training is asked for, and recipes: the same as YAML files.

    technique: sft
    about: "what it is for"
    options: {lr: 0.00002, schedule: constant, dropout: 0.1}

No torch here: the command line reads this file. Where the report gives no value, the default is our choice.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pomona.errors import PomonaError

Positive = Annotated[float, Field(gt=0, lt=1e6)]
Share = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1, le=1 << 30)]
MAX_YAML_BYTES = 1 << 20


class Options(BaseModel):
    """Frozen; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def with_changes(self, **changes: Any) -> Self:
        """A copy with those of `changes` that are not None, checked. PomonaError as for a recipe."""
        given = {key: value for key, value in changes.items() if value is not None}
        return checked(type(self), {**self.model_dump(), **given}, type(self).__name__)

    def digest(self) -> str:
        """Twelve hex digits: runs with other options keep other work folders."""
        return hashlib.sha256(json.dumps(self.model_dump(), sort_keys=True).encode()).hexdigest()[:12]


AnyOptions = TypeVar("AnyOptions", bound=Options)


class TrainingOptions(Options):
    """Of every training run.

    weights: an adapter, or all of them. rank, alpha: of the adapter; alpha is twice the rank by default.
    batch: rows of one optimizer step; pass_rows: of one pass through the network, for memory. window: tokens
    of the longest row that is taken. dropout: on both residual branches of every layer. precision: of the
    products; weights and sums stay in float32. max_steps, minutes: whichever of them and the epochs ends
    first ends the run. checkpoint_steps: steps between two checkpoints.
    """

    weights: Literal["adapter", "full"] = "adapter"
    rank: Annotated[int, Field(ge=1, le=1024)] = 16
    alpha: Positive | None = None
    lr: Positive = 2e-4
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    warm_up: Share = 0.0
    epochs: Annotated[int, Field(ge=1, le=1000)] = 1
    max_steps: Count | None = None
    minutes: Positive | None = None
    batch: Annotated[int, Field(ge=1, le=65_536)] = 16
    pass_rows: Annotated[int, Field(ge=1, le=1024)] = 4
    window: Annotated[int, Field(ge=16, le=1 << 20)] = 1024
    dropout: Share = 0.0
    weight_decay: Share = 0.0
    clip: Positive = 1.0
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    validation: Annotated[float, Field(ge=0, le=0.5)] = 0.05
    checkpoint_steps: Count = 50
    seed: Annotated[int, Field(ge=0, lt=1 << 31)] = 0


class SftOptions(TrainingOptions):
    """Constant rate and dropout as in the report, section 4.3, whose rate of 2e-5 is for all weights of the
    on-device model (5e-6: the server model's); an adapter needs about ten times that."""

    dropout: Share = 0.1
    epochs: Annotated[int, Field(ge=1, le=1000)] = 2


class RewardOptions(TrainingOptions):
    """Of the reward model (report, section 4.4). labels: soft targets by level, hard ones (1), or a margin by
    level in the place of a target (Llama 2, section 3.2.2). grading_weight: lambda of the regulariser, which
    the report does not give. unknown_level: for preferences that do not say by how much."""

    labels: Literal["soft", "hard", "margin"] = "soft"
    grading_weight: Annotated[float, Field(ge=0, lt=1e6)] = 0.1
    unknown_level: Literal["significantly_better", "better", "slightly_better", "negligibly_better"] = (
        "better"
    )
    schedule: Literal["constant", "cosine", "linear"] = "cosine"
    warm_up: Share = 0.05
    validation: Annotated[float, Field(ge=0, le=0.5)] = 0.1


class PreferenceOptions(TrainingOptions):
    """Of DPO and IPO. beta: of the KL to the reference, IPO's tau (the report gives none)."""

    weights: Literal["adapter"] = "adapter"
    loss: Literal["dpo", "ipo"] = "dpo"
    beta: Positive = 0.1
    lr: Positive = 5e-5
    schedule: Literal["constant", "cosine", "linear"] = "linear"
    warm_up: Share = 0.1


def checked(kind: type[AnyOptions], raw: dict[str, Any], source: str) -> AnyOptions:
    """The options of `raw`. PomonaError: an unknown key, a value out of range."""
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, problem["loc"]))
        known = (
            f"; the keys are {', '.join(kind.model_fields)}" if problem["type"] == "extra_forbidden" else ""
        )
        raise PomonaError(f"{source}: {place}: {problem['msg']}{known}") from error


def load_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. PomonaError: not readable, or something else."""
    try:
        import yaml
    except ImportError:
        raise PomonaError(f"{path}: reading YAML needs `pip install pyyaml`") from None
    try:
        if path.stat().st_size > MAX_YAML_BYTES:
            raise PomonaError(f"{path}: is larger than 1 MiB, which no such file is; check the path")
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise PomonaError(f"{path}: no readable YAML ({error}); check the path and the text") from error
    if not isinstance(raw, dict) or not all(isinstance(key, str) for key in raw):
        raise PomonaError(f"{path}: holds no mapping of names; see docs/align.md")
    return raw


def read_recipe(path: Path, technique: str, kind: type[AnyOptions]) -> AnyOptions:
    """The options in a recipe file. PomonaError: not readable, for another technique, a wrong key."""
    raw = load_yaml(path)
    options = raw.get("options", {})
    if unknown := sorted(set(raw) - {"technique", "about", "options"}):
        raise PomonaError(f"{path}: unknown key {unknown[0]!r}; a recipe has technique, about and options")
    if not isinstance(options, dict):
        raise PomonaError(f"{path}: options is no mapping; write name: value lines under it")
    if raw.get("technique") != technique:
        raise PomonaError(f"{path}: is a recipe for {raw.get('technique')!r}, not for {technique!r}")
    return checked(kind, options, str(path))
