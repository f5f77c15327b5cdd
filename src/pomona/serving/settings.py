"""What a server may be told: one frozen class, one configuration file with the same keys.

    settings = load_settings(Path("server.yaml"), {"port": 9000})

The command line wins over the file, the file over the defaults. Unknown keys are refused.
"""

from __future__ import annotations

import ipaddress
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator

from pomona.errors import PomonaError
from pomona.runtime.transcript import first_problem

API_KEY_VARIABLE = "POMONA_API_KEY"
MIN_KEY_CHARACTERS = 16
MAX_CONFIG_BYTES = 1 << 20


class ServerSettings(BaseModel):
    """Sizes in bytes or tokens, times in seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = "smollm2-135m-4bit"  # a name in the cache, or a directory
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)  # 0: one that is free
    api_key: SecretStr | None = None
    allowed_hosts: tuple[str, ...] = ()  # names by which clients may call us, besides localhost and addresses
    allowed_origins: tuple[str, ...] = ()  # of web pages elsewhere that may use the server

    threads: int | None = Field(None, ge=1)
    isa: str = "auto"
    kv_tokens: int | None = Field(None, ge=1)
    adapter_budget_bytes: int = Field(256 << 20, ge=1)
    adapter_store: Path | None = None  # adapters may be loaded from below it, besides the model's own
    warm: bool = True  # read the default adapter and make the compiler of guides before the first request

    max_running: int = Field(64, ge=1, le=256)  # requests in one step
    max_waiting: int = Field(256, ge=1, le=1 << 20)  # more are refused with 429
    prefill_chunk: int = Field(64, ge=32, le=512)

    max_body_bytes: int = Field(4 << 20, ge=1024)
    max_prompt_tokens: int | None = Field(None, ge=1)  # besides the model's context
    max_schema_bytes: int = Field(64 << 10, ge=64)  # of a JSON schema, or of all tools together
    max_schema_depth: int = Field(32, ge=1, le=128)
    max_choices: int = Field(8, ge=1, le=128)  # n
    default_max_tokens: int = Field(1024, ge=1)
    default_temperature: float = Field(0.0, ge=0.0, le=2.0)
    deadline_seconds: float = Field(300.0, gt=0.0, le=86400.0)
    body_seconds: float = Field(30.0, gt=0.0)  # in which a request's body must have come
    stall_seconds: float = Field(
        30.0, gt=0.0
    )  # a reader of a stream that takes nothing for so long is dropped
    drain_seconds: float = Field(30.0, ge=0.0)  # for running requests, after SIGTERM

    guardrail: str | None = None  # judges inputs and outputs: one of the model's adapters, or a directory
    guardrail_policy: Path | None = None  # thresholds and phrases, by default the built-in ones

    compare_db: Path | None = None  # of the Compare page; by default in the cache directory
    grading_db: Path | None = None  # of the grading pages; likewise
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @model_validator(mode="after")
    def _safe(self) -> Self:
        key = None if self.api_key is None else self.api_key.get_secret_value()
        if key is not None and not (len(key) >= MIN_KEY_CHARACTERS and key.isascii() and key.isprintable()):
            raise ValueError(f"api_key: must have {MIN_KEY_CHARACTERS} printable ASCII characters or more")
        if key is None and not self.loopback:
            raise ValueError(
                f"host {self.host} can be reached from other machines: set an API key "
                f"({API_KEY_VARIABLE}, or api_key in the configuration file), or bind to 127.0.0.1"
            )
        if self.guardrail_policy is not None and self.guardrail is None:
            raise ValueError("guardrail_policy: is of no use without guardrail; name one")
        if "*" in self.allowed_origins:
            raise ValueError(
                "allowed_origins: name each origin, such as https://notes.example; * is not taken"
            )
        return self

    @property
    def loopback(self) -> bool:
        """Nobody but this machine can connect."""
        return self.host == "localhost" or (
            is_address(self.host) and ipaddress.ip_address(self.host).is_loopback
        )


def is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def load_settings(config: Path | None = None, given: Mapping[str, Any] | None = None) -> ServerSettings:
    """The settings of a file (YAML, or TOML by its ending), under those that were `given`.

    The API key may come from the environment, where no list of processes shows it. Raises PomonaError that
    names the key that is wrong.
    """
    values = {} if config is None else _read(config)
    values |= {key: value for key, value in (given or {}).items() if value is not None}
    if "api_key" not in values and (key := os.environ.get(API_KEY_VARIABLE)):
        values["api_key"] = key
    try:
        return ServerSettings.model_validate(values)
    except ValidationError as error:
        place = "serve" if config is None else str(config)
        raise PomonaError(
            f"{place}: {first_problem(error).removeprefix('Value error, ')}; correct it"
        ) from error


def _read(config: Path) -> dict[str, Any]:
    import yaml

    try:
        if config.stat().st_size > MAX_CONFIG_BYTES:
            raise PomonaError(f"{config}: larger than any configuration; give the right file")
        text = config.read_text(encoding="utf-8")
        values = tomllib.loads(text) if config.suffix == ".toml" else yaml.safe_load(text)
    except OSError as error:
        raise PomonaError(f"{config}: cannot be read ({error.strerror}); check the path") from error
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        kind = "TOML" if config.suffix == ".toml" else "YAML"
        raise PomonaError(f"{config}: is no {kind} ({' '.join(str(error).split())}); correct it") from error
    if not isinstance(values, dict):
        raise PomonaError(f"{config}: must hold key: value lines; see docs/serve.md")
    return values
