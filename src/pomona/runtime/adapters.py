"""Adapters in memory: loaded on first use, kept under a byte budget, replaced while requests run.

    cache = AdapterCache(engine, budget_bytes=64 << 20)
    cache.register("summarize", Path("adapters/summarize"))
    with engine.new_sequence(cache.acquire("summarize")) as sequence:
        ...

A sequence keeps the adapter version that it started with: replacing or evicting one takes it out of the
cache, and its memory goes when the last sequence that uses it is closed. Several threads may call.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from pomona import _native
from pomona.errors import PomonaError
from pomona.runtime.adapter_file import read_adapter
from pomona.runtime.engine import Engine, native_array

DEFAULT_BUDGET = 256 << 20
Precision = Literal["bf16", "int8"]  # of adapter weights in memory; int8 takes half the bytes


class LoadedAdapter:
    """One version of an adapter, ready to run."""

    def __init__(self, name: str, version: int, native: _native.Adapter) -> None:
        self.name = name
        self.version = version
        self.native = native
        self.bytes = native.bytes


@dataclass(frozen=True)
class AdapterStatus:
    name: str
    version: int
    directory: Path
    resident: bool
    pinned: bool
    bytes: int  # 0 until it is loaded for the first time
    hits: int
    loads: int


@dataclass
class _Entry:
    directory: Path
    version: int = 1
    pinned: bool = False
    bytes: int = 0
    hits: int = 0
    loads: int = 0


def load_adapter(
    engine: Engine,
    directory: Path | str,
    *,
    name: str = "",
    version: int = 1,
    precision: Precision = "bf16",
) -> LoadedAdapter:
    """Reads a PEFT directory for this engine's base. PomonaError for anything that does not fit."""
    _check_precision(precision)
    file = read_adapter(directory, engine.config, engine.fingerprint)
    tensors = {key: (dtype, native_array(array)) for key, (dtype, array) in file.tensors.items()}
    try:
        native = _native.Adapter(engine.native_shape, tensors, file.scales, precision)
    except ValueError as error:
        raise PomonaError(f"{directory}: {error}; use a sound adapter of this base") from error
    return LoadedAdapter(name or Path(directory).name, version, native)


def _check_precision(precision: str) -> None:
    if precision not in get_args(Precision):
        raise PomonaError(
            f"adapter precision {precision!r} is none; choose {' or '.join(get_args(Precision))}"
        )


class AdapterCache:
    """Named adapters of one engine. The least recently used one that is not pinned gives way."""

    def __init__(
        self, engine: Engine, budget_bytes: int = DEFAULT_BUDGET, *, precision: Precision = "bf16"
    ) -> None:
        _check_precision(precision)
        self.engine = engine
        self.budget_bytes = budget_bytes
        self.precision = precision
        self._entries: dict[str, _Entry] = {}
        self._resident: OrderedDict[str, LoadedAdapter] = OrderedDict()  # least recently used first
        self._alive = 0  # bytes of all versions in memory, those that only sequences hold among them
        self._lock = threading.RLock()

    @property
    def alive_bytes(self) -> int:
        """Memory of all loaded versions, including what left the cache and is still in use."""
        return self._alive

    def register(self, name: str, directory: Path | str) -> None:
        """Makes an adapter known; it is read when it is first acquired."""
        with self._lock:
            if name in self._entries:
                raise PomonaError(
                    f"adapter {name}: is registered already; replace it, or choose another name"
                )
            self._entries[name] = _Entry(Path(directory))

    def acquire(self, name: str) -> LoadedAdapter:
        """The current version, loaded if it is not resident."""
        with self._lock:
            entry = self._entry(name)
            loaded = self._resident.get(name)
            if loaded is None:
                loaded = self._load(name, entry.directory, entry.version)
                entry.loads += 1
                entry.bytes = loaded.bytes
                self._resident[name] = loaded
            entry.hits += 1
            self._resident.move_to_end(name)
            return loaded

    def replace(self, name: str, directory: Path | str) -> int:
        """Puts another adapter in the place of `name` and gives its version. The new one is read before the
        old one goes: if it is no good, nothing changes."""
        with self._lock:
            entry = self._entry(name)
            loaded = self._load(name, Path(directory), entry.version + 1)
            entry.directory = Path(directory)
            entry.version += 1
            entry.loads += 1
            entry.bytes = loaded.bytes
            self._resident[name] = loaded
            self._resident.move_to_end(name)
            return entry.version

    def pin(self, name: str, pinned: bool = True) -> None:
        """A pinned adapter is loaded now and never evicted."""
        with self._lock:
            if pinned:
                self.acquire(name)
            self._entry(name).pinned = pinned

    def unload(self, name: str) -> None:
        """Takes an adapter out of memory; it stays known."""
        with self._lock:
            self._entry(name)
            self._resident.pop(name, None)

    def remove(self, name: str) -> None:
        """Forgets an adapter."""
        with self._lock:
            self.unload(name)
            del self._entries[name]

    def status(self) -> list[AdapterStatus]:
        with self._lock:
            return [
                AdapterStatus(
                    name,
                    entry.version,
                    entry.directory,
                    name in self._resident,
                    entry.pinned,
                    entry.bytes,
                    entry.hits,
                    entry.loads,
                )
                for name, entry in self._entries.items()
            ]

    def _entry(self, name: str) -> _Entry:
        if name not in self._entries:
            known = ", ".join(sorted(self._entries)) or "none"
            raise PomonaError(f"adapter {name}: is not known (there: {known}); register it first")
        return self._entries[name]

    def _load(self, name: str, directory: Path, version: int) -> LoadedAdapter:
        loaded = load_adapter(self.engine, directory, name=name, version=version, precision=self.precision)
        if loaded.bytes > self.budget_bytes:
            raise PomonaError(
                f"adapter {name}: takes {loaded.bytes:,} bytes of a budget of {self.budget_bytes:,}; raise it"
            )
        self._make_room(loaded.bytes, name)
        self._alive += loaded.bytes
        weakref.finalize(loaded, self._gone, loaded.bytes)
        return loaded

    def _make_room(self, needed: int, newcomer: str) -> None:
        kept = sum(adapter.bytes for name, adapter in self._resident.items() if name != newcomer)
        for name in list(self._resident):
            if kept + needed <= self.budget_bytes:
                return
            if name != newcomer and not self._entries[name].pinned:
                kept -= self._resident.pop(name).bytes
        if kept + needed > self.budget_bytes:
            raise PomonaError(
                f"adapter {newcomer}: pinned adapters leave no room in the budget of "
                f"{self.budget_bytes:,} bytes; unpin one, or raise the budget"
            )

    def _gone(self, size: int) -> None:
        self._alive -= size
