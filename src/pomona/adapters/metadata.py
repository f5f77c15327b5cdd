"""pomona.json of an adapter: for which base it was made, for what, how, of what data, under which licence.

    record = read_record(Path("adapters/summarize"))
    record.base_fingerprint, record.task

The file is a JSON object, version 1. A key that this version does not know is refused by its name: half an
understood record would be a silent loss. What stands inside `recipe`, `text`, `data`, `result` and `metrics`
is free: it is shown and carried along, never acted on.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pomona.errors import PomonaError
from pomona.models.model_directory import PROVENANCE_FILE, parse_json_object

VERSION = 1
MAX_BYTES = 1 << 20  # of a JSON file of an adapter; a curve of a thousand evaluations takes 30 kB

Fingerprint = Annotated[str, Field(pattern=r"^[A-Za-z0-9:_-]{1,128}$")]
Text = Annotated[str, Field(max_length=65_536)]
Short = Annotated[str, Field(min_length=1, max_length=512)]


class PromptRecord(BaseModel):
    """How the task's prompts were made in training: the system message, and the text around the input."""

    model_config = ConfigDict(frozen=True, strict=True, extra="allow")

    instructions: Text | None = None
    template: Text | None = None


class Origin(BaseModel):
    """Where an adapter came from when it was added to a model. Of a local path only the last part."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    kind: Literal["zoo", "hub", "directory"]
    source: Short
    revision: Short | None = None
    # Whether the adapter itself named the base, or the user said that it belongs to this one.
    base: Literal["named", "on the user's word"] = "named"


class AdapterRecord(BaseModel):
    """The whole record. Only `base_fingerprint` decides anything: an adapter runs on that base alone."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    version: Literal[1] = 1
    task: Short | None = None
    base_fingerprint: Fingerprint | None = None
    teacher_fingerprint: Fingerprint | None = None
    tables_of: Fingerprint | None = None  # the base whose tables were trained together with this adapter
    license: Short | None = None
    license_note: Text | None = None
    prompt: PromptRecord | None = None
    data: list[Any] | None = None
    text: dict[str, Any] | None = None
    recipe: dict[str, Any] | None = None
    result: dict[str, Any] | None = None
    metrics: dict[str, Any] | None = None
    rebased_from: dict[str, Any] | None = None
    origin: Origin | None = None
    sha256: dict[str, Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]] | None = None  # file name -> hash

    def with_changes(self, **changes: Any) -> AdapterRecord:
        """A copy with other values, checked like the first one."""
        return type(self).model_validate({**{k: getattr(self, k) for k in self.model_fields_set}, **changes})

    def to_json(self) -> dict[str, Any]:
        """What was given, in the order of the fields; the version always."""
        return {"version": self.version, **self.model_dump(exclude_unset=True, exclude={"version"})}


def parse_record(raw: Mapping[str, Any], source: str) -> AdapterRecord:
    """Checks a pomona.json; `source` names it in messages.

    Raises PomonaError: written by a newer version, a key that is not known, a value of the wrong kind.
    """
    version = raw.get("version", VERSION)
    if type(version) is not int or version < 1:
        raise PomonaError(f"{source}: version {version!r} is none; get the adapter again")
    if version > VERSION:
        raise PomonaError(
            f"{source}: is of version {version}, this pomona reads {VERSION}; use a newer pomona"
        )
    unknown = sorted(set(raw) - set(AdapterRecord.model_fields))
    if unknown:
        known = ", ".join(AdapterRecord.model_fields)
        raise PomonaError(f"{source}: unknown key {unknown[0]!r}; the keys of version {VERSION} are {known}")
    try:
        return AdapterRecord.model_validate(dict(raw))
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, problem["loc"]))
        raise PomonaError(
            f"{source}: {place}: {problem['msg']}; correct it, or get the file again"
        ) from error


def read_record(directory: Path) -> AdapterRecord | None:
    """The record in an adapter's directory, None where there is no pomona.json. Errors as parse_record."""
    path = directory / PROVENANCE_FILE
    if not path.exists():
        return None
    return parse_record(read_small_json(path), str(path))


def read_small_json(path: Path) -> dict[str, Any]:
    """The JSON object of a file of at most MAX_BYTES. PomonaError: cannot be read, too large, not JSON."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise PomonaError(f"{path}: cannot be read ({error.strerror or error}); check the path") from error
    if len(raw) > MAX_BYTES:
        raise PomonaError(f"{path}: is larger than {MAX_BYTES:,} bytes, which no such file is; get it again")
    return parse_json_object(raw, str(path))
