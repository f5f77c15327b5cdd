"""What all handlers of one server share."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import cast

from fastapi import Request

from pomona.adapters.metadata import read_record
from pomona.errors import PomonaError
from pomona.models.model_directory import PROVENANCE_FILE
from pomona.runtime.answer import context_limit
from pomona.runtime.model import BASE, RECOVERY, Model
from pomona.safety.screening import Shield
from pomona.serving.errors import ApiError, unavailable
from pomona.serving.guarding import make_shield
from pomona.serving.metrics import Metrics
from pomona.serving.settings import ServerSettings


@dataclass
class ServerState:
    model: Model
    model_id: str  # the base's name
    settings: ServerSettings
    metrics: Metrics
    started: float = field(default_factory=time.time)  # seconds since 1970
    draining: bool = False
    shield: Shield | None = None  # the guardrail, where the settings name one

    def start(self) -> None:
        """Starts the model's scheduler under the settings and makes ready what requests would wait for."""
        settings, model = self.settings, self.model
        model.adapters.budget_bytes = settings.adapter_budget_bytes
        model.start_scheduler(
            max_running=settings.max_running,
            max_waiting=settings.max_waiting,
            prefill_chunk=settings.prefill_chunk,
        )
        self.metrics.watch(model)
        if settings.warm:
            assert model.guides is not None and model.dialect is not None
            if (default := self.default_adapter) is not None:
                model.adapters.acquire(default)
        if settings.guardrail is not None:
            self.shield = make_shield(model, settings.guardrail, settings.guardrail_policy)
            model.shield = self.shield

    @property
    def adapter_names(self) -> list[str]:
        return sorted(status.name for status in self.model.adapters.status())

    @property
    def default_adapter(self) -> str | None:
        return RECOVERY if RECOVERY in self.adapter_names else None

    @property
    def model_ids(self) -> list[str]:
        return [
            self.model_id,
            f"{self.model_id}:{BASE}",
            *(f"{self.model_id}:{name}" for name in self.adapter_names),
        ]

    @cached_property
    def context_tokens(self) -> int:
        """Of a prompt and its answer together."""
        return context_limit(self.model.engine)

    @cached_property
    def prompt_limit(self) -> int:
        return min(self.context_tokens - 1, self.settings.max_prompt_tokens or self.context_tokens)

    @cached_property
    def fingerprint(self) -> str:
        return f"fp_{self.model.engine.fingerprint[:10]}"

    def adapter_of(self, model_id: str) -> str | None:
        """The adapter that a model id means; None: the base alone. ApiError 404 for an unknown id."""
        base, _, name = model_id.partition(":")
        if base == self.model_id and model_id != f"{base}:":
            if not name:
                return self.model.adapter_for(None)
            with contextlib.suppress(PomonaError):
                return self.model.adapter_for(name)
        raise ApiError(
            404,
            f"The model '{model_id[:128]}' does not exist. GET /v1/models lists what is here.",
            param="model",
            code="model_not_found",
        )

    def check_open(self) -> None:
        if self.draining:
            raise unavailable("the server is shutting down; ask another one, or later")


def task_of(directory: Path) -> str | None:
    """What an adapter's record says that it is for."""
    try:
        record = read_record(directory) if (directory / PROVENANCE_FILE).is_file() else None
    except PomonaError:
        return None
    return None if record is None else record.task


def state_of(request: Request) -> ServerState:
    return cast(ServerState, request.app.state.pomona)
