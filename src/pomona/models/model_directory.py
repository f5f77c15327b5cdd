"""Writing a model directory so that it is whole or absent, and the small files that stand in one.

The files are written in a sibling directory `.NAME.partial-XXXX`, synced to the disk, and renamed to NAME at
the end (DESIGN.md, section 4, lists what stands in a model directory). A failure of any kind, Ctrl-C
included, removes the sibling; what a killed process left behind is removed by the next writer of the same
target.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from pomona.errors import PomonaError

Progress = Callable[[str, int, int], None]
"""Progress callback: (label, done, total); a total of 0 means that it is not known."""

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
PROVENANCE_FILE = "pomona.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
)
LICENCE_FILES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE", "NOTICE.txt", "USE_POLICY.md")

_MAX_JSON_BYTES = 64 << 20  # tokenizer.json is not read here; configs and shard indexes are far below this
DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_STALE_SECONDS = 60.0  # younger leftovers may belong to a process that has not locked them yet


class ModelDirectoryWriter:
    """Context manager: fill `.path`, and `target` appears, complete, when the block ends without an
    exception.

    `need_bytes` is checked against the free space before any work. With `overwrite`, an existing `target` is
    replaced at the end, and only if it looks like a model directory (has a config.json; or `mark`, for an
    adapter's) or is empty.

    Raises PomonaError: target exists and not `overwrite`; target is no model directory; disk full (names the
    target and the free space); target not writable. Other exceptions of the block pass through after the
    clean-up.
    """

    def __init__(
        self,
        target: Path | str,
        *,
        overwrite: bool = False,
        need_bytes: int = 0,
        mark: str = CONFIG_FILE,
    ) -> None:
        given = Path(target).expanduser()
        if given.name in ("", ".."):
            raise PomonaError(
                f"{given}: not a usable name for a model directory; give a path such as models/NAME"
            )
        # A link is followed, so that `overwrite` replaces the directory and not the user's link to it.
        self.target = given.resolve() if given.is_symlink() else given.parent.resolve() / given.name
        self.overwrite = overwrite
        self.mark = mark
        self._check_target()
        self._check_space(need_bytes)
        self._path: Path | None = None
        self._lock: int | None = None

    @property
    def path(self) -> Path:
        """The temporary directory to write in; only inside the `with` block."""
        if self._path is None:
            raise RuntimeError("ModelDirectoryWriter.path is only there inside its with block")
        return self._path

    def __enter__(self) -> ModelDirectoryWriter:
        try:
            self.target.parent.mkdir(parents=True, exist_ok=True)
            self._remove_stale()
            path = self.target.parent / f".{self.target.name}.partial-{secrets.token_hex(4)}"
            path.mkdir()  # not mkdtemp: its mode 0700 would stay on the finished directory
        except OSError as error:
            raise self._translate(error) from error
        self._path = path
        self._lock = _try_lock(path)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        path = self.path
        try:
            if error is None:
                self._commit(path)
            elif isinstance(error, OSError) and error.errno in DISK_FULL:
                raise self._translate(error) from error
        except OSError as failure:
            raise self._translate(failure) from failure
        finally:
            # After a commit the directory is no longer there under this name, and this does nothing.
            shutil.rmtree(path, ignore_errors=True)
            if self._lock is not None:
                os.close(self._lock)
            self._path = self._lock = None

    def _check_target(self) -> None:
        if not os.path.lexists(self.target):
            return
        if not self.overwrite:
            raise PomonaError(f"{self.target}: already exists; choose another name, or ask to overwrite it")
        if not self.target.is_dir():
            raise PomonaError(f"{self.target}: exists and is not a directory; choose another name")
        if any(self.target.iterdir()) and not (self.target / self.mark).is_file():
            raise PomonaError(
                f"{self.target}: is not overwritten, being no model directory (it has no {self.mark}); "
                "choose another name, or delete it yourself"
            )

    def _check_space(self, need_bytes: int) -> None:
        free = _free_bytes(self.target)
        if free is not None and need_bytes > free:
            raise PomonaError(
                f"{self.target}: needs {_size(need_bytes)}, and {_size(free)} are free on that disk; "
                "free some space or choose a directory on another disk"
            )

    def _commit(self, path: Path) -> None:
        _sync_tree(path)
        self._check_target()  # someone may have made it in the meantime
        old = None
        if os.path.lexists(self.target):
            old = self.target.parent / f".{self.target.name}.replaced-{secrets.token_hex(4)}"
            os.rename(self.target, old)
        try:
            os.rename(path, self.target)
        except BaseException:
            if old is not None:
                os.rename(old, self.target)
            raise
        _sync_directory(self.target.parent)
        if old is not None:
            shutil.rmtree(old, ignore_errors=True)

    def _remove_stale(self) -> None:
        pattern = f".{glob.escape(self.target.name)}."
        leftovers = list(self.target.parent.glob(pattern + "partial-*"))
        if self.target.exists():  # else a `replaced` directory is the only copy: never delete that one
            leftovers += self.target.parent.glob(pattern + "replaced-*")
        for leftover in leftovers:
            with contextlib.suppress(OSError):
                if time.time() - leftover.stat().st_mtime < _STALE_SECONDS:
                    continue
                lock = _try_lock(leftover)
                if lock is not None:  # nobody holds it: its writer is dead
                    shutil.rmtree(leftover, ignore_errors=True)
                    os.close(lock)

    def _translate(self, error: OSError) -> PomonaError:
        if error.errno in DISK_FULL:
            free = _free_bytes(self.target)
            left = "" if free is None else f" ({_size(free)} free)"
            if error.errno == errno.EFBIG:
                return PomonaError(
                    f"{self.target}: a file grew past the size limit of this file system or process{left}; "
                    "raise the limit (ulimit -f) or choose a directory on another disk"
                )
            what = "the disk quota is used up" if error.errno == errno.EDQUOT else "the disk is full"
            return PomonaError(
                f"{self.target}: {what}{left}, nothing was kept; "
                "free some space or choose a directory on another disk"
            )
        return PomonaError(
            f"{self.target}: cannot be written ({error.strerror or error}); check path and permissions"
        )


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in `path`. Raises PomonaError: no such file, too large, not strictly a JSON object."""
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_JSON_BYTES + 1)
    except OSError as error:
        raise PomonaError(f"{path}: cannot be read ({error.strerror or error}); check the path") from error
    if len(raw) > _MAX_JSON_BYTES:
        raise PomonaError(
            f"{path}: larger than {_size(_MAX_JSON_BYTES)}, which no such file is; get it again"
        )
    return parse_json_object(raw, str(path))


def parse_json_object(raw: bytes, source: str) -> dict[str, Any]:
    """The JSON object in `raw`; `source` names it in messages. Strict: UTF-8, no NaN, no key twice."""
    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique_keys, parse_constant=_no_constant)
        if b"\\u" in raw:  # half a surrogate pair is no text: it could be neither printed nor written again
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        what = "too deeply nested" if isinstance(error, RecursionError) else str(error)
        raise PomonaError(f"{source}: not valid JSON ({what}); the file is damaged, get it again") from error
    if not isinstance(value, dict):
        raise PomonaError(
            f"{source}: holds a JSON {type(value).__name__} where an object is needed; get it again"
        )
    return value


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write `value` as indented JSON with a final newline, keys in the given order."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def copy_files(source: Path, target: Path, names: tuple[str, ...]) -> list[str]:
    """Copy those of `names` that `source` has into `target`; links are followed. Gives the copied names."""
    copied = [name for name in names if (source / name).is_file()]
    for name in copied:
        shutil.copyfile(source / name, target / name)
    return copied


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"the key {key!r} stands there twice")
            seen.add(key)
    return result


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _try_lock(path: Path) -> int | None:
    """A descriptor of the directory that holds an exclusive lock, or None where that is not to be had."""
    try:
        import fcntl
    except ImportError:  # not POSIX: leftovers are then never taken for stale
        return None
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _sync_tree(path: Path) -> None:
    for entry in _walk(path):
        if entry.is_dir():
            _sync_directory(entry)
        else:
            with entry.open("rb") as file:
                os.fsync(file.fileno())
    _sync_directory(path)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        # Some network file systems refuse to sync a directory; the rename itself is atomic without it.
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _walk(path: Path) -> Iterator[Path]:
    for entry in sorted(path.iterdir()):
        if entry.is_dir() and not entry.is_symlink():
            yield from _walk(entry)
        yield entry


def _free_bytes(path: Path) -> int | None:
    for place in (path, *path.parents):
        with contextlib.suppress(OSError):
            return shutil.disk_usage(place).free
    return None


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
