"""Small stand-ins for the engine, the model and the compressor: the commands are tested by themselves."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from pomona.cli.main import main
from pomona.errors import PomonaError


@dataclass(frozen=True)
class FakeTiming:
    prompt_tokens: int = 10
    new_tokens: int = 4
    prefill_seconds: float = 0.5
    decode_seconds: float = 0.25
    first_token_seconds: float = 0.5

    @property
    def prefill_tps(self) -> float:
        return self.prompt_tokens / self.prefill_seconds

    @property
    def decode_tps(self) -> float:
        return self.new_tokens / self.decode_seconds


class FakeModel:
    """Answers every request with `pieces`, and remembers what it was asked."""

    def __init__(self, source: str, options: dict[str, Any]) -> None:
        self.source, self.options = source, options
        self.engine = SimpleNamespace(threads=2, isa="scalar", config=None)
        self.tokenizer = SimpleNamespace(encode=lambda text, **_: list(range(len(text.split()))))
        self.last_timing: FakeTiming | None = None
        self.requests: list[Any] = []
        self.calls: list[dict[str, Any]] = []
        self.pieces: list[str | BaseException] = ["Hel", "lo", "."]
        self.refusal: PomonaError | None = None  # raised before there is a first piece

    def stream(self, messages: list[dict[str, str]], **options: Any) -> Iterator[str]:
        if self.refusal is not None:
            self.requests.append(list(messages))
            raise self.refusal
        return self._answer(list(messages), options)

    def complete(self, text: str, **options: Any) -> Iterator[str]:
        return self._answer(text, options)

    def _answer(self, request: Any, options: dict[str, Any]) -> Iterator[str]:
        self.requests.append(request)
        self.calls.append(options)
        self.last_timing = None
        for piece in self.pieces:
            if isinstance(piece, BaseException):
                raise piece
            yield piece
        self.last_timing = FakeTiming()


@dataclass
class FakeRuntime:
    """What the commands did: the models that they loaded, and the answers that the next ones will give."""

    loaded: list[FakeModel] = field(default_factory=list)
    pieces: list[str | BaseException] = field(default_factory=lambda: ["Hel", "lo", "."])

    def load(self, source: str, **options: Any) -> FakeModel:
        if source == "missing":
            raise PomonaError("missing: no such model; run `pomona pull missing`")
        model = FakeModel(source, options)
        model.pieces = self.pieces
        self.loaded.append(model)
        return model


@pytest.fixture
def fake_module(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts a module with the given content in the place of the real one, until the test ends."""

    def install(name: str, **content: Any) -> None:
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
        parent, _, last = name.rpartition(".")
        if parent in sys.modules:
            monkeypatch.setattr(sys.modules[parent], last, module, raising=False)

    return install


@pytest.fixture
def runtime(fake_module: Callable[..., None]) -> FakeRuntime:
    """pomona.runtime.model, replaced."""
    fake = FakeRuntime()
    fake_module("pomona.runtime.model", Model=SimpleNamespace(load=fake.load), Timing=FakeTiming)
    return fake


@pytest.fixture
def cli_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of this test's own; gives its directory of models."""
    monkeypatch.setenv("POMONA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


@pytest.fixture
def put_model(cli_models: Path) -> Callable[..., Path]:
    """Makes a directory with a config.json and nothing else in the cache."""

    def put(name: str, config: dict[str, Any] | None = None) -> Path:
        directory = cli_models / name
        directory.mkdir(parents=True)
        (directory / "config.json").write_text(json.dumps(config or {}))
        return directory

    return put


@dataclass(frozen=True)
class Outcome:
    """What a command line gave."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def pomona(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Runs a command line in this process."""

    def call(*arguments: str) -> Outcome:
        capsys.readouterr()
        code = main(arguments)
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return call
