"""Adapters in memory: loaded on first use, kept under a byte budget, replaced while requests run.

    cache = AdapterCache(engine, budget_bytes=64 << 20)
    cache.register("summarize", Path("adapters/summarize"))
    with engine.new_sequence(cache.acquire("summarize")) as sequence:
        ...

A sequence keeps the adapter version that it started with: replacing or evicting one takes it out of the
cache, and its memory goes when the last sequence that uses it is closed. Several threads may call: files are
read outside the lock, so an adapter that is in memory is had at once while another is being read.
"""

from __future__ import annotations

import math
import threading
import weakref
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from pomona import _native
from pomona.errors import PomonaError
from pomona.models.safetensors_file import SafetensorsFile
from pomona.runtime.adapter_file import WEIGHTS_FILE, read_adapter
from pomona.runtime.engine import Engine, native_array

DEFAULT_BUDGET = 256 << 20
Precision = Literal["bf16", "int8"]  # of adapter weights in memory; int8 takes half the bytes


class AdapterMemoryFullError(PomonaError):
    """The budget has no room beside the adapters that are in use now; it may have later."""


class UnknownAdapterError(PomonaError):
    """No adapter has this name, or none has it any longer."""


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
    resident: bool  # this version is in memory
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
    checked: bool = False
    current: weakref.ref[LoadedAdapter] | None = None  # this version, as long as anybody holds it
    loading: threading.Lock = field(default_factory=threading.Lock)  # held while its files are read


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

    def check(self, name: str) -> None:
        """Raises PomonaError if `name` is not known, or its files are no good (they are read once)."""
        with self._lock:
            entry = self._entry(name)
            if entry.checked or entry.loads:
                return
        with entry.loading:
            read_adapter(entry.directory, self.engine.config, self.engine.fingerprint)
            entry.checked = True

    def in_memory(self, name: str) -> LoadedAdapter | None:
        """The current version if it can be had without reading files."""
        with self._lock:
            return self._use(name, self._entry(name))

    def acquire(self, name: str, *, within_budget: bool = False) -> LoadedAdapter:
        """The current version, loaded if it is not in memory.

        Adapters that sequences hold cannot give way. Where they fill the budget it is exceeded, or, with
        `within_budget`, AdapterMemoryFullError is raised.
        """
        while True:
            with self._lock:
                entry = self._entry(name)
                loaded = self._use(name, entry)
            if loaded is not None:
                return loaded
            with entry.loading:  # one thread reads; those that waited for it find the adapter in memory
                with self._lock:
                    wanted = self._entries.get(name) is entry and self._current(entry) is None
                if wanted:
                    new = self._load(name, entry, entry.directory, entry.version, within_budget)
                    with self._lock:
                        if self._entries.get(name) is entry:
                            self._install(name, entry, new)

    def replace(self, name: str, directory: Path | str) -> int:
        """Puts another adapter in the place of `name` and gives its version. The new one is read before the
        old one goes: if it is no good, nothing changes."""
        with self._lock:
            entry = self._entry(name)
        with entry.loading:
            loaded = self._load(name, entry, Path(directory), entry.version + 1, False)
            with self._lock:
                if self._entries.get(name) is not entry:
                    raise PomonaError(f"adapter {name}: was removed while its replacement was read")
                entry.directory = Path(directory)
                entry.version = loaded.version
                self._install(name, entry, loaded)
                return entry.version

    def pin(self, name: str, pinned: bool = True) -> None:
        """A pinned adapter is loaded now and never evicted."""
        while pinned:
            loaded = self.acquire(name)
            with self._lock:
                entry = self._entry(name)
                if self._current(entry) is loaded:  # else it was replaced meanwhile
                    self._resident[name] = loaded
                    entry.pinned = True
                    return
        with self._lock:
            self._entry(name).pinned = False

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
                    self._current(entry) is not None,
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
            raise UnknownAdapterError(f"adapter {name}: is not known (there: {known}); register it first")
        return self._entries[name]

    @staticmethod
    def _current(entry: _Entry) -> LoadedAdapter | None:
        return None if entry.current is None else entry.current()

    def _use(self, name: str, entry: _Entry) -> LoadedAdapter | None:
        """The current version if it is in memory, be it that only sequences still hold it."""
        loaded = self._current(entry)
        if loaded is not None:
            entry.hits += 1
            back = name not in self._resident
            self._resident[name] = loaded
            self._resident.move_to_end(name)
            if back:  # others gave way for it or came in its place
                self._make_room(0, name, False)
        return loaded

    def _install(self, name: str, entry: _Entry, loaded: LoadedAdapter) -> None:
        entry.current = weakref.ref(loaded)
        entry.loads += 1
        entry.bytes = loaded.bytes
        self._resident[name] = loaded
        self._resident.move_to_end(name)

    def _load(
        self, name: str, entry: _Entry, directory: Path, version: int, within_budget: bool
    ) -> LoadedAdapter:
        """Makes room, then reads. Called with entry.loading held, and without the lock."""
        expected = min(_expected_bytes(directory, self.precision), self.budget_bytes)
        with self._lock:
            self._make_room(expected, name, within_budget)
            self._alive += expected  # others that load at the same time see it
        try:
            loaded = load_adapter(
                self.engine, directory, name=name, version=version, precision=self.precision
            )
        finally:
            self._gone(expected)
        with self._lock:
            self._alive += loaded.bytes
            weakref.finalize(loaded, self._gone, loaded.bytes)
            if loaded.bytes > self.budget_bytes:
                raise PomonaError(
                    f"adapter {name}: takes {loaded.bytes:,} bytes of a budget of {self.budget_bytes:,}; "
                    "raise it"
                )
            self._make_room(0, name, False)
        return loaded

    def _make_room(self, needed: int, newcomer: str, strict: bool) -> None:
        """Lets go of adapters, least recently used first, until `needed` bytes fit into the budget."""
        pinned = sum(
            adapter.bytes
            for name, adapter in self._resident.items()
            if name != newcomer and self._entries[name].pinned
        )
        if pinned + needed > self.budget_bytes:
            raise PomonaError(
                f"adapter {newcomer}: pinned adapters leave no room in the budget of "
                f"{self.budget_bytes:,} bytes; unpin one, or raise the budget"
            )
        for name in list(self._resident):
            if self._alive + needed <= self.budget_bytes:
                return
            # The newcomer's last version goes when it is replaced. One that a sequence holds stays alive and
            # is found again by _use.
            if name != newcomer and not self._entries[name].pinned:
                del self._resident[name]
        if strict and self._alive + needed > self.budget_bytes:
            raise AdapterMemoryFullError(
                f"adapter {newcomer}: adapters in use leave no room in the budget of {self.budget_bytes:,} "
                "bytes; wait for their requests to end, or raise the budget"
            )

    def _gone(self, size: int) -> None:
        with self._lock:
            self._alive -= size


def _expected_bytes(directory: Path, precision: Precision) -> int:
    """What the adapter will take in memory, near enough to make room for it before it is read."""
    tensors = SafetensorsFile(directory / WEIGHTS_FILE).tensors.values()
    return sum((1 if precision == "int8" else 2) * math.prod(info.shape) for info in tensors)
