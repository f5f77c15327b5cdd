"""Reading and writing of safetensors files: against the safetensors library, and against hostile bytes."""

from __future__ import annotations

import json
import math
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from pomona.errors import PomonaError
from pomona.models.safetensors_file import (
    CHUNK,
    Checkpoint,
    SafetensorsFile,
    SafetensorsWriter,
    TensorSpec,
    aligned_order,
    bf16_from_float32,
    float32_from_bf16,
    write_bf16_file,
)

DTYPES = {
    "I8": "i1",
    "U8": "u1",
    "I16": "i2",
    "BF16": "u2",
    "F16": "f2",
    "I32": "i4",
    "F32": "f4",
    "F64": "f8",
}


def write(
    path: Path, tensors: dict[str, tuple[str, NDArray[Any]]], metadata: dict[str, str] | None = None
) -> None:
    specs = [TensorSpec(name, dtype, array.shape) for name, (dtype, array) in tensors.items()]
    with SafetensorsWriter(path, specs, metadata) as writer:
        for name, (_, array) in tensors.items():
            writer.write(name, array)


def example() -> dict[str, tuple[str, NDArray[Any]]]:
    rng = np.random.default_rng(1)
    return {
        "a": ("F32", rng.standard_normal((4, 8), dtype=np.float32)),
        "b": ("BF16", rng.integers(0, 1 << 16, (3, 5), dtype=np.uint16)),
        "c": ("I8", rng.integers(-128, 127, 7, dtype=np.int8)),
        "empty": ("F16", np.zeros((0, 4), np.float16)),
        "scalar": ("I8", np.array(3, np.int8)),
    }


def library_reads(content: bytes) -> dict[str, dict[str, Any]]:
    """Name -> dtype, shape and data, as the safetensors library reads a file."""
    return dict(safetensors.deserialize(content))  # type: ignore[no-untyped-call]


def raw_file(header: object, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def test_what_is_written_is_read_again_without_a_copy(tmp_path: Path) -> None:
    write(tmp_path / "x.safetensors", example(), {"format": "pt"})
    with SafetensorsFile(tmp_path / "x.safetensors") as file:
        assert file.metadata == {"format": "pt"}
        assert list(file.tensors) == list(example())
        for name, (dtype, array) in example().items():
            assert file.tensors[name].dtype == dtype
            read = file.array(name)
            assert read.dtype == array.dtype
            np.testing.assert_array_equal(read, array)
            assert not read.flags.writeable
        assert not file.array("a").flags.owndata
        view = file.array("a")
    np.testing.assert_array_equal(view, example()["a"][1])  # a view outlives its file


def test_the_library_reads_what_we_write(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write(path, example(), {"format": "pt"})
    theirs = library_reads(path.read_bytes())
    assert set(theirs) == set(example())
    for name, (dtype, array) in example().items():
        assert theirs[name]["dtype"] == dtype
        assert tuple(theirs[name]["shape"]) == array.shape
        assert bytes(theirs[name]["data"]) == array.tobytes()
    with safetensors.safe_open(path, framework="np") as file:
        assert file.metadata() == {"format": "pt"}
        np.testing.assert_array_equal(file.get_tensor("a"), example()["a"][1])


def test_we_read_what_the_library_writes(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    arrays = {name: array for name, (dtype, array) in example().items() if dtype != "BF16"}
    safetensors.numpy.save_file(arrays, path, metadata={"by": "library"})
    with SafetensorsFile(path) as file:
        assert file.metadata == {"by": "library"}
        assert set(file.tensors) == set(arrays)
        for name, array in arrays.items():
            np.testing.assert_array_equal(file.array(name), array)


def test_the_bfloat16_of_torch_is_our_bfloat16(tmp_path: Path) -> None:
    """torch is part of the `train` extra; the project's own test run always installs it."""
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file, save_file

    values = torch.randn(64, 33, generator=torch.Generator().manual_seed(0)) * 1e3
    save_file({"w": values.bfloat16()}, tmp_path / "theirs.safetensors")
    with SafetensorsFile(tmp_path / "theirs.safetensors") as file:
        bits = file.array("w")
        assert bits.dtype == np.uint16
        np.testing.assert_array_equal(bits, bf16_from_float32(values.numpy()))
        np.testing.assert_array_equal(float32_from_bf16(bits), values.bfloat16().float().numpy())
        write(tmp_path / "ours.safetensors", {"w": ("BF16", bits)})
    assert torch.equal(load_file(tmp_path / "ours.safetensors")["w"], values.bfloat16())


def test_bfloat16_rounding_is_to_nearest_even_and_keeps_nan() -> None:
    one_and = np.array([0x3F800000, 0x3F808000, 0x3F808001, 0x3F818000, 0x3F807FFF], np.uint32)
    assert bf16_from_float32(one_and.view(np.float32)).tolist() == [0x3F80, 0x3F80, 0x3F81, 0x3F82, 0x3F80]
    special = np.array([np.inf, -np.inf, 3.4e38, -0.0, 1e-45], np.float32)
    assert bf16_from_float32(special).tolist() == [0x7F80, 0xFF80, 0x7F80, 0x8000, 0x0000]
    nans = np.array([0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001], np.uint32).view(np.float32)
    assert np.isnan(float32_from_bf16(bf16_from_float32(nans))).all()
    every = np.arange(1 << 16, dtype=np.uint16)
    finite = every[(every & 0x7F80) != 0x7F80]
    np.testing.assert_array_equal(bf16_from_float32(float32_from_bf16(finite)), finite)


def test_the_data_starts_at_a_multiple_of_64_and_so_do_tensors_of_whole_multiples(tmp_path: Path) -> None:
    sizes = {"odd": 7, "line": 64, "half": 32, "lines": 640, "byte": 1}
    specs = aligned_order(TensorSpec(name, "U8", (size,)) for name, size in sizes.items())
    assert [spec.name for spec in specs] == ["line", "lines", "half", "odd", "byte"]
    path = tmp_path / "x.safetensors"
    with SafetensorsWriter(path, specs) as writer:
        for spec in specs:
            writer.write(spec.name, np.zeros(spec.shape, np.uint8))
    header = int.from_bytes(path.read_bytes()[:8], "little")
    assert (8 + header) % 64 == 0
    with SafetensorsFile(path) as file:
        assert [file.tensors[name].start % 64 for name in ("line", "lines", "half")] == [0, 0, 0]
        assert file.array("lines").ctypes.data % 64 == 0


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.dictionaries(
        st.text(min_size=1).filter(lambda name: name != "__metadata__" and name.isprintable()),
        st.sampled_from(sorted(DTYPES)).flatmap(
            lambda dtype: st.tuples(
                st.just(dtype),
                hnp.arrays(DTYPES[dtype], hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)),
            )
        ),
        max_size=6,
    ),
    metadata=st.dictionaries(st.text(), st.text(), max_size=3),
)
def test_any_tensors_make_the_round_trip(
    tmp_path: Path, data: dict[str, tuple[str, NDArray[Any]]], metadata: dict[str, str]
) -> None:
    path = tmp_path / "x.safetensors"
    try:
        json.dumps([*data, *metadata.items()], ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return  # lone surrogates cannot be written in UTF-8
    write(path, data, metadata)
    theirs = library_reads(path.read_bytes())
    with SafetensorsFile(path) as file:
        assert file.metadata == metadata
        assert set(file.tensors) == set(data) == set(theirs)
        for name, (_, array) in data.items():
            assert file.array(name).tobytes() == array.tobytes() == bytes(theirs[name]["data"])
            assert file.array(name).shape == array.shape


def test_a_tensor_at_an_address_that_its_type_cannot_have_is_copied(tmp_path: Path) -> None:
    header = {
        "a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
        "b": {"dtype": "F32", "shape": [2], "data_offsets": [1, 9]},
    }
    values = np.array([1.5, -2.0], np.float32)
    (tmp_path / "x").write_bytes(raw_file(header, b"\0" + values.tobytes()))
    with SafetensorsFile(tmp_path / "x") as file:
        read = file.array("b")
        assert read.flags.aligned
        assert not read.flags.writeable
        np.testing.assert_array_equal(read, values)


ONE = {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "0 bytes long"),
        (b"1234567", "7 bytes long"),
        (struct.pack("<Q", 1 << 63), "header has 9223372036854775808 bytes"),
        (struct.pack("<Q", 100) + b"{}", "header has 100 bytes, in a file of 10"),
        (raw_file(b"", b""), "does not start with a JSON header"),
        (raw_file(b"[1]", b""), "does not start with a JSON header"),
        (raw_file(b"{", b""), "not valid JSON"),
        (raw_file(b'{"a":1}' + b"\xff", b""), "not valid JSON"),
        (raw_file(b'{"a":' + b"[" * 200_000, b""), "too deeply nested"),
        (
            raw_file(
                b'{"a":' + json.dumps(ONE).encode() + b',"a":' + json.dumps(ONE).encode() + b"}", b"1234"
            ),
            "twice",
        ),
        (raw_file({"__metadata__": {"a": 1}}, b""), "__metadata__"),
        (raw_file({"__metadata__": []}, b""), "__metadata__"),
        (raw_file({"a": [1]}, b""), "not described by exactly"),
        (raw_file({"a": {**ONE, "extra": 1}}, b"1234"), "not described by exactly"),
        (raw_file({"a": {**ONE, "dtype": "F4"}}, b"1234"), "the type 'F4', which is not supported"),
        (raw_file({"a": {**ONE, "dtype": ["U8"]}}, b"1234"), "which is not supported"),
        (raw_file({"a": {**ONE, "shape": [-4]}}, b"1234"), "impossible shape"),
        (raw_file({"a": {**ONE, "shape": [4.0]}}, b"1234"), "impossible shape"),
        (raw_file({"a": {**ONE, "shape": [True, 4]}}, b"1234"), "impossible shape"),
        (raw_file({"a": {**ONE, "shape": [1] * 9 + [4]}}, b"1234"), "impossible shape"),
        (raw_file({"a": {**ONE, "shape": [0, 1 << 62], "data_offsets": [0, 0]}}, b""), "impossible shape"),
        (
            raw_file({"a": {**ONE, "shape": [0, 1 << 40, 1 << 40], "data_offsets": [0, 0]}}, b""),
            "impossible shape",
        ),
        (raw_file({"a": {**ONE, "shape": [1 << 32, 1 << 32]}}, b"1234"), "impossible shape"),
        (raw_file({"a": {**ONE, "data_offsets": [0]}}, b"1234"), "impossible data_offsets"),
        (raw_file({"a": {**ONE, "data_offsets": [-4, 0]}}, b"1234"), "impossible data_offsets"),
        (raw_file({"a": {**ONE, "data_offsets": [4, 0]}}, b"1234"), "does not take -4 bytes"),
        (raw_file({"a": {**ONE, "data_offsets": [0, 3]}}, b"1234"), "does not take 3 bytes"),
        (raw_file({"a": ONE, "b": {**ONE, "data_offsets": [3, 7]}}, b"1234567"), "overlaps another"),
        (raw_file({"a": ONE, "b": {**ONE, "data_offsets": [5, 9]}}, b"123456789"), "leaves a hole"),
        (raw_file({"a": ONE}, b"123"), "tensors take 4 bytes, the file has 3"),
        (raw_file({"a": ONE}, b"12345"), "tensors take 4 bytes, the file has 5"),
        (raw_file({"\n\x1b[2J": {**ONE, "shape": [5]}}, b"1234"), "does not take 4 bytes"),
        (raw_file({"\ud800": ONE}, b"1234"), "not valid JSON"),
    ],
)
def test_a_damaged_file_is_refused_with_the_reason(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(PomonaError) as caught:
        SafetensorsFile(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert words in message
    assert message.isprintable()


def test_a_file_that_is_not_there_or_a_directory_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(PomonaError, match="cannot be read"):
            SafetensorsFile(path)


def test_a_tensor_that_is_not_there_is_refused_by_name(tmp_path: Path) -> None:
    write(tmp_path / "x.safetensors", example())
    with (
        SafetensorsFile(tmp_path / "x.safetensors") as file,
        pytest.raises(PomonaError, match="no tensor 'z'"),
    ):
        file.array("z")


# --- fuzzing: a mutated file is refused, or read within its bounds and as the library reads it


def flip_bits(data: bytearray, rng: random.Random) -> bytes:
    for _ in range(rng.randint(1, 4)):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def flip_header_bits(data: bytearray, rng: random.Random) -> bytes:
    size = int.from_bytes(data[:8], "little")
    data[8 + rng.randrange(size)] ^= 1 << rng.randrange(8)
    return bytes(data)


def cut_or_grow(data: bytearray, rng: random.Random) -> bytes:
    if rng.random() < 0.7:
        return bytes(data[: rng.randrange(len(data))])
    return bytes(data) + rng.randbytes(rng.randint(1, 100))


def change_length(data: bytearray, rng: random.Random) -> bytes:
    size = int.from_bytes(data[:8], "little")
    choices = [
        0,
        1,
        size - 1,
        size + 1,
        len(data) - 8,
        len(data) - 7,
        100_000_001,
        (1 << 63) - 1,
        (1 << 64) - 1,
    ]
    return struct.pack("<Q", rng.choice([*choices, rng.randrange(2 * len(data))])) + bytes(data[8:])


def edit_header(data: bytearray, rng: random.Random) -> bytes:
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    name = rng.choice([key for key in header if key != "__metadata__"])
    number = rng.choice(
        [-1, 0, 1, 2, 3, 7, 255, 1 << 31, 1 << 32, 1 << 40, 1 << 63, 1 << 64, -(1 << 63), 10**400, 1.5]
    )
    junk: Any = rng.choice([None, True, [], {}, "", "F32", number, [number], [number, number], "\ud800\n"])
    edits: list[Callable[[], Any]] = [
        lambda: header[name].update(shape=[number]),
        lambda: header[name].update(shape=[*header[name]["shape"], number]),
        lambda: header[name].update(shape=[1] * rng.randint(0, 80)),
        lambda: header[name]["data_offsets"].__setitem__(rng.randrange(2), number),
        lambda: header[name].update(
            data_offsets=[o + rng.randint(-9, 9) for o in header[name]["data_offsets"]]
        ),
        lambda: header[name].update(dtype=rng.choice([*DTYPES, "F4", "BOOL", "F8_E4M3", "C64", junk])),
        lambda: header[name].__setitem__(rng.choice(["dtype", "shape", "data_offsets", "more"]), junk),
        lambda: header.__setitem__(name, junk),
        lambda: header.__setitem__("copy", header[name]),
        lambda: header.__delitem__(name),
        lambda: header.__setitem__("__metadata__", junk),
        lambda: header.__setitem__(rng.choice(["", "\ud800", "x" * 10_000]), header.pop(name)),
    ]
    rng.choice(edits)()
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(data[8 + size :])


def test_thousands_of_mutations_are_refused_or_read_in_bounds(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write(path, example(), {"format": "pt", "more": "text"})
    original = path.read_bytes()
    rng = random.Random(20240707)
    mutations = [flip_bits, flip_header_bits, cut_or_grow, change_length, edit_header, edit_header]
    accepted = refused = 0
    for number in range(4000):
        mutated = mutations[number % len(mutations)](bytearray(original), rng)
        path.write_bytes(mutated)
        try:
            file = SafetensorsFile(path)
        except PomonaError as error:
            refused += 1
            assert str(error).isprintable()
            continue
        accepted += 1
        theirs = library_reads(mutated)  # what we accept, the library accepts
        assert set(file.tensors) == set(theirs)
        for name, info in file.tensors.items():
            array = file.array(name)
            assert array.shape == info.shape == tuple(theirs[name]["shape"])
            assert array.nbytes == info.end - info.start <= len(mutated)
            assert array.tobytes() == bytes(theirs[name]["data"])  # reads every byte: none out of bounds
        file.close()
    assert accepted > 200  # neither everything nor nothing, or the test would say little
    assert refused > 2000


# --- the writer's own rules


def test_the_writer_refuses_wrong_use(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    two = [TensorSpec("a", "F32", (2,)), TensorSpec("b", "BF16", (2,))]
    a, b = np.zeros(2, np.float32), np.zeros(2, np.uint16)
    with pytest.raises(ValueError, match="declared twice"):
        SafetensorsWriter(path, [two[0], two[0]])
    with pytest.raises(ValueError, match="unknown safetensors dtype 'F4'"):
        SafetensorsWriter(path, [TensorSpec("a", "F4", (2,))])
    with pytest.raises(ValueError, match="negative"):
        SafetensorsWriter(path, [TensorSpec("a", "F32", (-2,))])
    with pytest.raises(ValueError, match="where 'a' was declared"), SafetensorsWriter(path, two) as writer:
        writer.write("b", b)
    with pytest.raises(ValueError, match="shape"), SafetensorsWriter(path, two) as writer:
        writer.write("a", a[:1])
    with pytest.raises(ValueError, match="float64"), SafetensorsWriter(path, two) as writer:
        writer.write("a", a.astype(np.float64))
    with (
        pytest.raises(ValueError, match="'b' was declared and not written"),
        SafetensorsWriter(path, two) as writer,
    ):
        writer.write("a", a)
    with pytest.raises(ValueError, match="nothing more"), SafetensorsWriter(path, two[:1]) as writer:
        writer.write("a", a)
        writer.write("a", a)
    for pieces in ([a[:1]], [a, a[:1]]):
        with pytest.raises(ValueError, match="do not make up"), SafetensorsWriter(path, two) as writer:
            writer.write_chunks("a", pieces)


def test_a_tensor_can_come_in_pieces_and_out_of_order_in_memory(tmp_path: Path) -> None:
    array = np.arange(24, dtype=np.float32).reshape(4, 6)
    specs = [TensorSpec("pieces", "F32", (4, 6)), TensorSpec("transposed", "F32", (6, 4))]
    with SafetensorsWriter(tmp_path / "x", specs) as writer:
        writer.write_chunks("pieces", (array[i] for i in range(4)))
        writer.write("transposed", array.T)
    with SafetensorsFile(tmp_path / "x") as file:
        np.testing.assert_array_equal(file.array("pieces"), array)
        np.testing.assert_array_equal(file.array("transposed"), array.T)


def test_write_bf16_file_rounds_floats_keeps_bits_and_refuses_what_is_not_finite(tmp_path: Path) -> None:
    floats = np.random.default_rng(0).standard_normal(CHUNK + 7, dtype=np.float32)
    bits = np.arange(12, dtype=np.uint16).reshape(3, 4)
    tensors: dict[str, NDArray[Any]] = {
        "floats": floats,
        "bits": bits,
        "halves": floats[:8].astype(np.float16),
    }
    calls: list[tuple[str, int, int]] = []
    write_bf16_file(
        tmp_path / "x",
        {name: array.shape for name, array in tensors.items()},
        lambda name: [tensors[name]],
        source="here",
        label="writing",
        progress=lambda *call: calls.append(call),
    )
    with SafetensorsFile(tmp_path / "x") as file:
        assert {info.dtype for info in file.tensors.values()} == {"BF16"}
        np.testing.assert_array_equal(file.array("floats"), bf16_from_float32(floats))
        np.testing.assert_array_equal(file.array("bits"), bits)
        np.testing.assert_array_equal(file.array("halves"), bf16_from_float32(tensors["halves"]))
    assert calls == [("writing", done, 3) for done in range(4)]
    for bad in (np.nan, np.inf, 3.4e38):
        pieces = {"w": [np.array([bad])]}
        with pytest.raises(PomonaError, match="here: tensor 'w' has a value that is not finite"):
            write_bf16_file(tmp_path / "x", {"w": (1,)}, pieces.__getitem__, source="here", label="")


# --- checkpoints of one file or several


def shards(directory: Path, **index: Any) -> None:
    tensors = example()
    write(directory / "model-1.safetensors", {name: tensors[name] for name in ("a", "b")}, {"format": "pt"})
    write(directory / "model-2.safetensors", {name: tensors[name] for name in ("c", "empty", "scalar")})
    places = {name: f"model-{1 if name in 'ab' else 2}.safetensors" for name in tensors}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places | index}))


def test_one_file_and_shards_read_the_same(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    write(tmp_path / "one" / "model.safetensors", example(), {"format": "pt"})
    shards(tmp_path / "two")
    for directory in (tmp_path / "one", tmp_path / "two"):
        with Checkpoint(directory) as checkpoint:
            assert checkpoint.metadata == {"format": "pt"}
            assert set(checkpoint.tensors) == set(example())
            for name, (_, array) in example().items():
                np.testing.assert_array_equal(checkpoint.array(name), array)
            assert math.prod(checkpoint.tensors["a"].shape) == 32
            with pytest.raises(PomonaError, match="no tensor 'z'"):
                checkpoint.array("z")


@pytest.mark.parametrize(
    "name", ["../x.safetensors", "/etc/passwd", "..", "", "a\\b", "C:x", "a\0b", None, 1]
)
def test_an_index_cannot_lead_out_of_its_directory(tmp_path: Path, name: object) -> None:
    shards(tmp_path, a=name)
    with pytest.raises(PomonaError, match="plain file names"):
        Checkpoint(tmp_path)


def test_an_index_that_does_not_match_its_files_is_refused(tmp_path: Path) -> None:
    shards(tmp_path, more="model-1.safetensors")
    with pytest.raises(
        PomonaError, match=r"lists the tensor 'more', which model-1\.safetensors does not hold"
    ):
        Checkpoint(tmp_path)
    shards(tmp_path, a="model-2.safetensors")
    with pytest.raises(PomonaError, match="does not list the tensor 'a'"):
        Checkpoint(tmp_path)
    shards(tmp_path, more="model-0.safetensors")
    with pytest.raises(PomonaError, match="cannot be read"):
        Checkpoint(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": ["a"]}')
    with pytest.raises(PomonaError, match="plain file names"):
        Checkpoint(tmp_path)


def test_a_directory_without_weights_says_what_it_has(tmp_path: Path) -> None:
    with pytest.raises(PomonaError, match="is not a directory"):
        Checkpoint(tmp_path / "absent")
    with pytest.raises(PomonaError, match=r"neither model\.safetensors nor"):
        Checkpoint(tmp_path)
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(PomonaError, match="pickled"):
        Checkpoint(tmp_path)
