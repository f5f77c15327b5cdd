"""Reading (memory-mapped) and writing (streaming) of safetensors files.

Why not the `safetensors` library (0.8.0): its numpy side raises TypeError on BF16, what it returns is a copy
where the engine needs a view of the mapped file, and its writer wants all tensors in memory at once. The
format is small: 8 bytes of header length (little-endian), a JSON header of {name: {dtype, shape,
data_offsets}}, then the data without holes. Nothing is believed before it is checked, so that views never
leave the file. Tests compare with the library both ways.

Numpy has no bfloat16: BF16 tensors are uint16 arrays here, see `bf16_from_float32` and `float32_from_bf16`.
"""

from __future__ import annotations

import contextlib
import json
import math
import mmap
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pomona.errors import PomonaError
from pomona.models.model_directory import (
    INDEX_FILE,
    WEIGHTS_FILE,
    Progress,
    parse_json_object,
    read_json_object,
)

ALIGNMENT = 64
CHUNK = 4 << 20  # values that are converted at a time: 16 MB of float32
_MAX_HEADER_BYTES = 100_000_000
_MAX_RANK = 8
_MAX_DIMENSION = 1 << 40
_MAX_SHARDS = 4096

# What the format calls a type -> the little-endian numpy type that carries its bits.
_NUMPY_TYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"),
    "U8": np.dtype("u1"),
    "I8": np.dtype("i1"),
    "F8_E4M3": np.dtype("u1"),
    "F8_E5M2": np.dtype("u1"),
    "U16": np.dtype("<u2"),
    "I16": np.dtype("<i2"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "U32": np.dtype("<u4"),
    "I32": np.dtype("<i4"),
    "F32": np.dtype("<f4"),
    "U64": np.dtype("<u8"),
    "I64": np.dtype("<i8"),
    "F64": np.dtype("<f8"),
}


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a file; `start` and `end` are byte offsets in the data section."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class TensorSpec:
    """A tensor that is going to be written; `dtype` as the format spells it, such as "BF16"."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Size in bytes. Raises ValueError for an unknown dtype."""
        if self.dtype not in _NUMPY_TYPES:
            raise ValueError(f"unknown safetensors dtype {self.dtype!r} for {self.name!r}")
        return math.prod(self.shape) * _NUMPY_TYPES[self.dtype].itemsize


class SafetensorsFile:
    """A safetensors file, mapped read-only. A context manager; views stay valid after `close`.

    Raises PomonaError from the constructor for anything that is not a whole, sound file.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        try:
            with self.path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size < 8:
                    raise self._error(f"is {size} bytes long, too short for a safetensors file")
                self._map = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            what = error.strerror if isinstance(error, OSError) else None
            raise PomonaError(f"{self.path}: cannot be read ({what or error}); check the path") from error
        try:
            header_bytes = int.from_bytes(self._map[:8], "little")
            if header_bytes > min(_MAX_HEADER_BYTES, size - 8):
                raise self._error(f"says that its header has {header_bytes} bytes, in a file of {size}")
            raw = self._map[8 : 8 + header_bytes]
            if not raw.startswith(b"{"):
                raise self._error("does not start with a JSON header, so it is not a safetensors file")
            self._data_start = 8 + header_bytes
            header = parse_json_object(raw, str(self.path))
            self.metadata: dict[str, str] = self._read_metadata(header.pop("__metadata__", {}))
            self.tensors: dict[str, TensorInfo] = self._read_tensors(header, size - self._data_start)
        except BaseException:
            self._map.close()
            raise

    def array(self, name: str) -> NDArray[Any]:
        """Read-only array of tensor `name`, a view of the mapped file (BF16 as uint16, F8 as uint8).

        A copy, instead, where another writer placed the tensor at an address that its type cannot have.
        Raises PomonaError if there is no such tensor.
        """
        info = self.tensors.get(name)
        if info is None:
            raise PomonaError(
                f"{self.path}: has no tensor {name!r}; it is not the checkpoint that its config describes"
            )
        dtype = _NUMPY_TYPES[info.dtype]
        start = self._data_start + info.start
        if info.end == info.start:
            view = np.empty(info.shape, dtype)
        else:
            view = np.frombuffer(self._map, dtype, math.prod(info.shape), start).reshape(info.shape)
            if start % dtype.itemsize:
                view = view.copy()
        view.flags.writeable = False
        return view

    def close(self) -> None:
        """Give the mapping back; where views are in use, it goes with the last of them."""
        with contextlib.suppress(BufferError):
            self._map.close()

    def __enter__(self) -> SafetensorsFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _error(self, what: str) -> PomonaError:
        return PomonaError(f"{self.path}: {what}; the file is damaged or incomplete, get it again")

    def _read_metadata(self, value: Any) -> dict[str, str]:
        if not isinstance(value, dict) or not all(isinstance(entry, str) for entry in value.values()):
            raise self._error("__metadata__ is not an object of texts")
        return dict(value)

    def _read_tensors(self, header: dict[str, Any], data_bytes: int) -> dict[str, TensorInfo]:
        tensors = sorted(
            (self._read_tensor(*entry) for entry in header.items()), key=lambda t: (t.start, t.end)
        )
        position = 0
        for info in tensors:  # the format wants the tensors end to end: no hole, no overlap
            if info.start != position:
                what = "overlaps another" if info.start < position else "leaves a hole before it"
                raise self._error(f"tensor {info.name!r} {what}")
            position = info.end
        if position != data_bytes:
            raise self._error(f"tensors take {position} bytes, the file has {data_bytes} for them")
        return {info.name: info for info in tensors}

    def _read_tensor(self, name: str, entry: Any) -> TensorInfo:
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise self._error(f"tensor {name!r} is not described by exactly dtype, shape and data_offsets")
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(dtype, str) or dtype not in _NUMPY_TYPES:
            raise PomonaError(
                f"{self.path}: tensor {name!r} has the type {dtype!r}, which is not supported; "
                f"convert it to one of {', '.join(_NUMPY_TYPES)}"
            )
        if not _are_sizes(shape) or len(shape) > _MAX_RANK or any(size > _MAX_DIMENSION for size in shape):
            raise self._error(f"tensor {name!r} has an impossible shape")
        if not _are_sizes(offsets) or len(offsets) != 2:
            raise self._error(f"tensor {name!r} has impossible data_offsets")
        itemsize = _NUMPY_TYPES[dtype].itemsize
        if (
            math.prod(max(size, 1) for size in shape) * itemsize >= 1 << 62
        ):  # numpy counts empty shapes like this
            raise self._error(f"tensor {name!r} has an impossible shape")
        start, end = offsets
        if end - start != math.prod(shape) * itemsize:
            raise self._error(f"tensor {name!r} of {dtype} {shape} does not take {end - start} bytes")
        return TensorInfo(name, dtype, tuple(shape), start, end)


class SafetensorsWriter:
    """Writes a safetensors file tensor by tensor, in the declared order; only what is being written is in
    memory.

    The data section starts at a multiple of 64 bytes. The format allows no padding between tensors, so a
    tensor starts at such a multiple if the sizes before it are multiples; `aligned_order` gives the best
    order. A context manager: a clean exit closes (and so checks and syncs) the file, an exception leaves the
    part that is there.

    Raises OSError where the file cannot be written (ModelDirectoryWriter turns it into a PomonaError), and
    ValueError for wrong use: an unknown dtype, a name twice, another order, shape or type than declared, a
    tensor left out.
    """

    def __init__(
        self, path: Path | str, specs: Sequence[TensorSpec], metadata: dict[str, str] | None = None
    ) -> None:
        self.path = Path(path)
        self._specs = list(specs)
        self._next = 0
        header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
        position = 0
        for spec in self._specs:
            if spec.name in header or spec.name == "__metadata__":
                raise ValueError(f"{self.path}: tensor name {spec.name!r} is declared twice or reserved")
            if any(size < 0 for size in spec.shape):
                raise ValueError(f"{self.path}: tensor {spec.name!r} has a negative size")
            end = position + spec.nbytes
            header[spec.name] = {
                "dtype": spec.dtype,
                "shape": list(spec.shape),
                "data_offsets": [position, end],
            }
            position = end
        raw = json.dumps(header, separators=(",", ":")).encode("ascii")
        raw += b" " * (-(8 + len(raw)) % ALIGNMENT)
        self._file = self.path.open("wb")
        self._file.write(len(raw).to_bytes(8, "little") + raw)

    def write(self, name: str, array: NDArray[Any]) -> None:
        """Write tensor `name`, which must be the next one, of the declared shape and type (BF16: uint16)."""
        spec = self._take(name)
        if array.shape != spec.shape:
            raise ValueError(f"{self.path}: {name!r} has shape {array.shape}, declared {spec.shape}")
        self._put(spec, array)

    def write_chunks(self, name: str, chunks: Iterable[NDArray[Any]]) -> None:
        """Like `write`, for a tensor that comes as consecutive pieces of its flattened data."""
        spec = self._take(name)
        left = math.prod(spec.shape)
        for chunk in chunks:
            left -= chunk.size
            if left < 0:
                break
            self._put(spec, chunk)
        if left:
            raise ValueError(f"{self.path}: the pieces of {name!r} do not make up its shape {spec.shape}")

    def close(self) -> None:
        """Check that every declared tensor was written, sync the file to the disk and close it."""
        if self._file.closed:
            return
        with self._file:
            if self._next < len(self._specs):
                raise ValueError(
                    f"{self.path}: tensor {self._specs[self._next].name!r} was declared and not written"
                )
            self._file.flush()
            os.fsync(self._file.fileno())

    def __enter__(self) -> SafetensorsWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:  # the file is given up: a flush that fails now must not hide the first error
            with contextlib.suppress(OSError):
                self._file.close()

    def _take(self, name: str) -> TensorSpec:
        if self._next == len(self._specs) or self._specs[self._next].name != name:
            expected = repr(self._specs[self._next].name) if self._next < len(self._specs) else "nothing more"
            raise ValueError(f"{self.path}: got tensor {name!r} where {expected} was declared")
        self._next += 1
        return self._specs[self._next - 1]

    def _put(self, spec: TensorSpec, array: NDArray[Any]) -> None:
        dtype = _NUMPY_TYPES[spec.dtype]
        if array.dtype != dtype:
            raise ValueError(
                f"{self.path}: {spec.name!r} came as {array.dtype}, {spec.dtype} is carried as {dtype}"
            )
        self._file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


class Checkpoint:
    """The weights of a model directory, in one file or sharded with an index: one mapping of names to
    tensors.

    A context manager. Raises PomonaError: no weights, only pickled ones, an index that does not match its
    files.
    """

    def __init__(self, directory: Path | str) -> None:
        self.directory = Path(directory)
        self._files: dict[str, SafetensorsFile] = {}
        try:
            self.tensors: dict[str, TensorInfo] = self._open()
        except BaseException:
            self.close()
            raise

    @property
    def metadata(self) -> dict[str, str]:
        """The metadata of all files together."""
        return {key: value for file in self._opened() for key, value in file.metadata.items()}

    def array(self, name: str) -> NDArray[Any]:
        """Read-only array of tensor `name`; see SafetensorsFile.array."""
        if name not in self._files:
            raise PomonaError(
                f"{self.directory}: its weights have no tensor {name!r}; "
                "it is not the checkpoint that its config describes"
            )
        return self._files[name].array(name)

    def close(self) -> None:
        """Close all files; views that are in use stay valid."""
        for file in self._opened():
            file.close()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _opened(self) -> list[SafetensorsFile]:
        return list({id(file): file for file in self._files.values()}.values())

    def _open(self) -> dict[str, TensorInfo]:
        single, index = self.directory / WEIGHTS_FILE, self.directory / INDEX_FILE
        if single.exists():
            file = SafetensorsFile(single)
            self._files = dict.fromkeys(file.tensors, file)
            return file.tensors
        if not index.exists():
            raise PomonaError(f"{self.directory}: {self._what_is_missing()}")
        weight_map = read_json_object(index).get("weight_map")
        if not isinstance(weight_map, dict) or not all(
            _is_plain_name(shard) for shard in weight_map.values()
        ):
            raise PomonaError(
                f"{index}: its weight_map is not an object of plain file names; get the file again"
            )
        shards = sorted(set(weight_map.values()))
        if len(shards) > _MAX_SHARDS:
            raise PomonaError(
                f"{index}: names {len(shards)} files, more than {_MAX_SHARDS}; get the file again"
            )
        tensors: dict[str, TensorInfo] = {}
        for shard in shards:
            file = SafetensorsFile(self.directory / shard)
            for name, info in file.tensors.items():
                if weight_map.get(name) != shard:
                    raise PomonaError(
                        f"{index}: does not list the tensor {name!r} that {shard} holds; get both files again"
                    )
                tensors[name] = info
                self._files[name] = file
        absent = sorted(set(weight_map) - set(tensors))
        if absent:
            raise PomonaError(
                f"{index}: lists the tensor {absent[0]!r}, which {weight_map[absent[0]]} does not hold; "
                "get both files again"
            )
        return tensors

    def _what_is_missing(self) -> str:
        if not self.directory.is_dir():
            return "is not a directory; give the path of a model directory"
        if any(self.directory.glob("pytorch_model*.bin")):
            return (
                "has its weights in pickled form (pytorch_model*.bin), which is not read, as pickles can run "
                "code; save it once more with transformers' save_pretrained, which writes safetensors"
            )
        return f"has neither {WEIGHTS_FILE} nor {INDEX_FILE}; give the path of a model directory"


def aligned_order(specs: Iterable[TensorSpec]) -> list[TensorSpec]:
    """`specs` in an order that puts as many tensors as possible at multiples of 64 bytes, otherwise as given.

    Tensors of whole multiples come first; of the others, those that keep the larger power of two come first.
    """
    return sorted(specs, key=lambda spec: -math.gcd(spec.nbytes, ALIGNMENT))


def write_bf16_file(
    path: Path,
    shapes: Mapping[str, tuple[int, ...]],
    pieces: Callable[[str], Iterable[NDArray[Any]]],
    *,
    source: str,
    label: str,
    progress: Progress | None = None,
) -> None:
    """Write a BF16 file with the tensors of `shapes`, a few million values at a time.

    `pieces(name)` gives consecutive pieces of a tensor's flattened data, floating point (rounded here,
    nearest even) or uint16 (bfloat16 already). Raises PomonaError, naming `source` and the tensor, for NaN
    and for what overflows.
    """

    def rounded(name: str) -> Iterator[NDArray[np.uint16]]:
        for piece in pieces(name):
            flat = piece.reshape(-1)
            for start in range(0, flat.size, CHUNK):
                chunk = flat[start : start + CHUNK]
                bits = chunk if chunk.dtype == np.uint16 else bf16_from_float32(chunk)
                if ((bits & 0x7F80) == 0x7F80).any():
                    raise PomonaError(
                        f"{source}: tensor {name!r} has a value that is not finite in bfloat16; "
                        "get a sound checkpoint"
                    )
                yield bits

    specs = aligned_order(TensorSpec(name, "BF16", shape) for name, shape in shapes.items())
    with SafetensorsWriter(path, specs, {"format": "pt"}) as writer:
        for done, spec in enumerate(specs):
            if progress is not None:
                progress(label, done, len(specs))
            writer.write_chunks(spec.name, rounded(spec.name))
    if progress is not None:
        progress(label, len(specs), len(specs))


def bf16_from_float32(values: NDArray[np.floating[Any]]) -> NDArray[np.uint16]:
    """Round to bfloat16, ties to even, given as its 16 bits. NaN stays NaN, overflow becomes infinity."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = bits >> 16
    rounded &= 1
    rounded += 0x7FFF
    rounded += bits  # wraps only for NaN, which is put right below
    rounded >>= 16
    result = rounded.astype(np.uint16)
    nan = (bits & 0x7FFFFFFF) > 0x7F800000
    if nan.any():
        result[nan] = ((bits[nan] >> 16) | 0x40).astype(np.uint16)
    return result.reshape(values.shape)


def float32_from_bf16(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """The float32 values of bfloat16 `bits`, exact."""
    wide = bits.astype(np.uint32)
    wide <<= 16
    return wide.view(np.float32).reshape(bits.shape)


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(size) is int and size >= 0 for size in value)


def _is_plain_name(value: Any) -> bool:
    """A file name that cannot lead out of its directory."""
    return isinstance(value, str) and value not in ("", ".", "..") and not set(value) & set("/\\:\0")
