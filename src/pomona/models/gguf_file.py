"""A bounded reader of the GGUF container (versions 2 and 3, little endian).

A GGUF file is: magic, version, tensor count, metadata count; then the metadata (typed key-value pairs); then
one record per tensor (name, dimensions, ggml type, offset); then, aligned, the tensor data. Everything here
is foreign input: each count, length, offset and size is compared with what the file can still hold before
anything is built from it, so a hostile file costs no more memory or time than its own size allows. The tensor
data is mapped, never read.

Source: the public GGUF specification of the ggml project (docs/gguf.md); type sizes and dequantisation come
from the `gguf` package."""

from __future__ import annotations

import contextlib
import math
import mmap
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pomona.errors import PomonaError

Value = Any  # int | float | bool | str | list[str] | NDArray[Any] | list[Value]

MAX_METADATA = 65_536  # key-value pairs
MAX_TENSORS = 65_536
MAX_NAME_BYTES = 65_535  # keys and tensor names, as in the specification
MAX_STRING_BYTES = 1 << 26
MAX_LIST_ITEMS = 1 << 23  # Python objects made of array elements in the whole file
MAX_ARRAY_DEPTH = 4
MAX_DIMENSIONS = 4
MAX_ALIGNMENT = 1 << 20
DEFAULT_ALIGNMENT = 32

_STRING, _ARRAY, _BOOL = 8, 9, 7
_NUMPY_OF_TYPE = {  # value type -> numpy's name; booleans are bytes of 0 or 1
    0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4",
    6: "<f4", 7: "<u1", 10: "<u8", 11: "<i8", 12: "<f8",
}  # fmt: skip
_STRUCT_OF_TYPE = {
    0: struct.Struct("<B"), 1: struct.Struct("<b"), 2: struct.Struct("<H"), 3: struct.Struct("<h"),
    4: struct.Struct("<I"), 5: struct.Struct("<i"), 6: struct.Struct("<f"), 7: struct.Struct("<B"),
    10: struct.Struct("<Q"), 11: struct.Struct("<q"), 12: struct.Struct("<d"),
}  # fmt: skip
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")


@dataclass(frozen=True)
class GgufTensor:
    """One tensor record. `shape` is in row-major order (GGUF stores the dimensions reversed); `start` and
    `end` are byte offsets in the file; `row_bytes` is the size of one row of the last dimension."""

    name: str
    type_name: str
    shape: tuple[int, ...]
    start: int
    end: int
    row_bytes: int


@cache
def _type_table() -> dict[int, tuple[str, int, int]]:
    """ggml type number -> (name, elements per block, bytes per block)."""
    from gguf.constants import GGML_QUANT_SIZES

    return {int(kind): (kind.name, block, size) for kind, (block, size) in GGML_QUANT_SIZES.items()}


@cache
def _is_decodable(type_name: str) -> bool:
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
    from gguf.quants import dequantize

    kind = GGMLQuantizationType[type_name]
    try:
        dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except NotImplementedError:
        return False
    return True


class GgufFile:
    """An open GGUF file. Raises PomonaError, naming the file, for anything that is not a sound GGUF file.

    `metadata` maps each key to a Python scalar, a str, a numpy array (arrays of numbers and booleans) or a
    list (arrays of strings, nested arrays); `tensors` keeps the order of the file. Use it as a context
    manager."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._data = _map_file(self.path)
        try:
            header = _Parser(self.path, self._data).parse()
        except BaseException:
            self.close()
            raise
        self.version: int = header.version
        self.metadata: Mapping[str, Value] = header.metadata
        self.tensors: Mapping[str, GgufTensor] = header.tensors

    def __enter__(self) -> GgufFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Unmap the file. Arrays that still look into it keep the map alive until they are gone."""
        with contextlib.suppress(BufferError):  # a caller still holds a view; the map goes with the last one
            self._data.close()

    def raw(self, name: str) -> NDArray[np.uint8]:
        """Read-only uint8 view [rows, row_bytes] of a tensor's stored bytes; a vector is one row."""
        tensor = self._tensor(name)
        flat = np.frombuffer(self._data, np.uint8, tensor.end - tensor.start, tensor.start)
        return flat.reshape(-1, tensor.row_bytes)

    def dequantize(self, name: str, rows: slice | NDArray[np.intp] = slice(None)) -> NDArray[np.float32]:
        """float32 values of the chosen rows (a slice or an index array; all by default): [rows, columns], a
        vector as one row. Values may be infinite or NaN if the file says so.

        PomonaError if the type cannot be decoded (an integer type, or one that the `gguf` package does not
        decode)."""
        from gguf.constants import GGMLQuantizationType
        from gguf.quants import dequantize

        tensor = self._tensor(name)
        chosen = np.ascontiguousarray(self.raw(name)[rows])
        try:
            with np.errstate(all="ignore"):  # damaged scales: what comes of them is the caller's to judge
                values = dequantize(chosen, GGMLQuantizationType[tensor.type_name])
        except NotImplementedError:
            raise self._undecodable(tensor) from None
        return np.asarray(values, np.float32).reshape(chosen.shape[0], tensor.shape[-1])

    def check_decodable(self, name: str) -> None:
        """PomonaError, naming the type, if `dequantize` cannot decode this tensor; costs one block."""
        tensor = self._tensor(name)
        if not _is_decodable(tensor.type_name):
            raise self._undecodable(tensor)

    def _undecodable(self, tensor: GgufTensor) -> PomonaError:
        return PomonaError(
            f"{self.path}: tensor {tensor.name} has the type {tensor.type_name}, which pomona cannot decode;"
            " use a file in F16, BF16, Q8_0 or a K-quant"
        )

    def _tensor(self, name: str) -> GgufTensor:
        try:
            return self.tensors[name]
        except KeyError:
            raise PomonaError(
                f"{self.path}: tensor {name} is missing; the file is incomplete, download or convert it again"
            ) from None


def _map_file(path: Path) -> mmap.mmap:
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            if size < 24:
                raise PomonaError(
                    f"{path}: not a GGUF file ({size} bytes); give the path of a complete .gguf file"
                )
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise PomonaError(
            f"{path}: cannot be read ({error.strerror or error}); give the path of a .gguf file"
        ) from None


@dataclass(frozen=True)
class _Header:
    version: int
    metadata: dict[str, Value]
    tensors: dict[str, GgufTensor]


class _Parser:
    """Walks the header once, front to back. `self.at` never passes `self.size`."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.size, self.at = path, data, len(data), 0
        self.items_left = MAX_LIST_ITEMS

    def parse(self) -> _Header:
        if self.data[:4] != b"GGUF":
            raise PomonaError(f"{self.path}: not a GGUF file (wrong magic); give the path of a .gguf file")
        self.at = 4
        version = self._number(_U32)
        if version & 0xFFFF == 0 and version:
            self._fail("big-endian GGUF is not supported; convert the model to a little-endian file")
        if version not in (2, 3):
            self._fail(f"GGUF version {version} is not supported (2 and 3 are); convert the model again")
        tensor_count, metadata_count = self._number(_U64), self._number(_U64)
        # The smallest record is a key of one byte with a one-byte value, and a tensor of one dimension.
        self._check_count("metadata entries", metadata_count, 14, MAX_METADATA)
        self._check_count("tensors", tensor_count, 33, MAX_TENSORS)
        metadata: dict[str, Value] = {}
        for _ in range(metadata_count):
            key = self._name("metadata key")
            if key in metadata:
                self._fail(
                    f"metadata key {key} appears twice; the file is damaged, download or convert it again"
                )
            metadata[key] = self._value(self._number(_U32), key)
        return _Header(version, metadata, self._tensors(tensor_count, self._alignment(metadata)))

    def _fail(self, text: str) -> None:
        raise PomonaError(f"{self.path}: {text}")

    def _damaged(self, text: str) -> PomonaError:
        return PomonaError(
            f"{self.path}: damaged or truncated GGUF file ({text}); download or convert it again"
        )

    def _number(self, form: struct.Struct) -> Any:
        end = self.at + form.size
        if end > self.size:
            raise self._damaged(f"it ends inside its header, at byte {self.size}")
        (value,) = form.unpack_from(self.data, self.at)
        self.at = end
        return value

    def _check_count(self, what: str, count: int, least_bytes: int, limit: int) -> None:
        if count > limit:
            raise self._damaged(f"{count} {what}, the limit is {limit}")
        if count * least_bytes > self.size - self.at:
            raise self._damaged(f"{count} {what} do not fit into the file")

    def _text(self, what: str, limit: int) -> str:
        length = self._number(_U64)
        if length > limit or length > self.size - self.at:
            raise self._damaged(f"{what} of {length} bytes")
        start, self.at = self.at, self.at + length
        try:
            return self.data[start : self.at].decode("utf-8")
        except UnicodeDecodeError:
            raise self._damaged(f"{what} is not UTF-8") from None

    def _name(self, what: str) -> str:
        name = self._text(what, MAX_NAME_BYTES)
        if not name or not name.isprintable():  # also keeps error messages on one line
            raise self._damaged(f"{what} {name[:40]!r} is empty or holds control characters")
        return name

    def _value(self, kind: int, key: str) -> Value:
        if kind == _STRING:
            return self._text(f"the string of {key}", MAX_STRING_BYTES)
        if kind == _ARRAY:
            return self._array(key, 1)
        form = _STRUCT_OF_TYPE.get(kind)
        if form is None:
            raise self._damaged(f"{key} has the unknown value type {kind}")
        value = self._number(form)
        return self._boolean(value, key) if kind == _BOOL else value

    def _boolean(self, value: int, key: str) -> bool:
        if value not in (0, 1):
            raise self._damaged(f"{key} is a boolean of value {value}")
        return bool(value)

    def _array(self, key: str, depth: int) -> Value:
        if depth > MAX_ARRAY_DEPTH:
            raise self._damaged(f"{key} nests arrays deeper than {MAX_ARRAY_DEPTH}")
        kind, count = self._number(_U32), self._number(_U64)
        if kind in _NUMPY_OF_TYPE:
            dtype = np.dtype(_NUMPY_OF_TYPE[kind])
            self._check_count(f"values of {key}", count, dtype.itemsize, self.size)
            array = np.frombuffer(self.data, dtype, count, self.at).copy() if count else np.empty(0, dtype)
            self.at += count * dtype.itemsize
            if kind == _BOOL:
                if count and array.max() > 1:
                    raise self._damaged(f"{key} holds a boolean of value {array.max()}")
                return array.astype(np.bool_)
            return array
        if kind not in (_STRING, _ARRAY):
            raise self._damaged(f"{key} is an array of the unknown type {kind}")
        self._check_count(f"items of {key}", count, 8 if kind == _STRING else 12, self.items_left)
        self.items_left -= count
        if kind == _STRING:
            return self._strings(key, count)
        return [self._array(key, depth + 1) for _ in range(count)]

    def _strings(self, key: str, count: int) -> list[str]:
        """The hot loop: a vocabulary has 10^5 strings, so this one is written out."""
        data, at, size = self.data, self.at, self.size
        read: Callable[[Any, int], tuple[int]] = _U64.unpack_from
        strings: list[str] = []
        append = strings.append
        try:
            for _ in range(count):
                (length,) = read(data, at)
                start = at + 8
                at = start + length
                if at > size or length > MAX_STRING_BYTES:
                    raise self._damaged(f"a string of {length} bytes in {key}")
                append(data[start:at].decode("utf-8"))
        except struct.error:
            raise self._damaged(f"it ends inside {key}") from None
        except UnicodeDecodeError:
            raise self._damaged(f"string {len(strings)} of {key} is not UTF-8") from None
        self.at = at
        return strings

    def _alignment(self, metadata: Mapping[str, Value]) -> int:
        value = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if type(value) is not int or not 1 <= value <= MAX_ALIGNMENT or value & (value - 1):
            shown = value if isinstance(value, int | float) else type(value).__name__
            raise self._damaged(f"general.alignment is {shown}, not a power of two up to {MAX_ALIGNMENT}")
        return value

    def _tensors(self, count: int, alignment: int) -> dict[str, GgufTensor]:
        records: dict[str, tuple[tuple[int, ...], int, int]] = {}
        for _ in range(count):
            name = self._name("tensor name")
            if name in records:
                self._fail(f"tensor {name} appears twice; the file is damaged, download or convert it again")
            dimensions = self._number(_U32)
            if not 1 <= dimensions <= MAX_DIMENSIONS:
                raise self._damaged(f"tensor {name} has {dimensions} dimensions")
            sizes = tuple(self._number(_U64) for _ in range(dimensions))
            if min(sizes) < 1:
                raise self._damaged(f"tensor {name} has a dimension of size 0")
            kind, offset = self._number(_U32), self._number(_U64)
            records[name] = (sizes[::-1], kind, offset)
        data_start = -(-self.at // alignment) * alignment
        tensors = {
            name: self._place(name, *record, data_start, alignment) for name, record in records.items()
        }
        # Overlap would let a small file describe a large model, and is never written by a converter.
        last_end, last_name = 0, ""
        for tensor in sorted(tensors.values(), key=lambda one: one.start):
            if tensor.start < last_end:
                raise self._damaged(f"tensors {last_name} and {tensor.name} overlap")
            last_end, last_name = tensor.end, tensor.name
        return tensors

    def _place(
        self, name: str, shape: tuple[int, ...], kind: int, offset: int, data_start: int, alignment: int
    ) -> GgufTensor:
        if kind not in _type_table():
            self._fail(
                f"tensor {name} has the ggml type {kind}, unknown to pomona; use a file in F16 or Q8_0"
            )
        type_name, block, block_bytes = _type_table()[kind]
        if shape[-1] % block:
            raise self._damaged(
                f"rows of {name} have {shape[-1]} elements, no multiple of {type_name}'s block {block}"
            )
        row_bytes = shape[-1] // block * block_bytes
        start = data_start + offset
        end = start + math.prod(shape[:-1]) * row_bytes
        if offset % alignment:
            raise self._damaged(f"tensor {name} does not start at a multiple of {alignment}")
        if end > self.size:
            raise self._damaged(f"tensor {name} ends at byte {end}, the file has {self.size}")
        return GgufTensor(name, type_name, shape, start, end, row_bytes)
