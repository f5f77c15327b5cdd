"""The GGUF container: what a sound file gives, and that an unsound one is refused in one line, cheaply."""

from __future__ import annotations

import struct
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gguf_samples import model_metadata, model_tensors, write_gguf

from pomona.errors import PomonaError
from pomona.models import gguf_file
from pomona.models.gguf_file import GgufFile
from pomona.models.gguf_tokenizer import convert_tokenizer
from pomona.models.import_gguf import read_config

DECODED_KINDS = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"]


def string(text: bytes | str) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def entry(key: str, kind: int, value: bytes) -> bytes:
    return string(key) + struct.pack("<I", kind) + value


def tensor(name: str, sizes: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    return string(name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, kind, offset)


def container(
    *entries: bytes,
    tensors: tuple[bytes, ...] = (),
    data: bytes = b"",
    version: int = 3,
    alignment: int = 32,
    counts: tuple[int, int] | None = None,
) -> bytes:
    """A GGUF file by hand: the writer of the `gguf` package refuses to write what we must refuse to read."""
    tensor_count, entry_count = counts or (len(tensors), len(entries))
    head = (
        b"GGUF"
        + struct.pack("<IQQ", version, tensor_count, entry_count)
        + b"".join(entries)
        + b"".join(tensors)
    )
    return head + bytes(-len(head) % alignment) + data


@pytest.fixture
def write(tmp_path: Path) -> Callable[[bytes], Path]:
    def _write(content: bytes) -> Path:
        path = tmp_path / "sample.gguf"
        path.write_bytes(content)
        return path

    return _write


def refusal(path: Path) -> str:
    with pytest.raises(PomonaError) as caught:
        GgufFile(path)
    text = str(caught.value)
    assert (
        text.startswith(f"{path}: ") and "\n" not in text and "; " in text
    )  # file, what is wrong, what to do
    return text


def test_metadata_of_every_type_is_read(write: Callable[[bytes], Path]) -> None:
    scalars = {
        "u8": (0, "<B", 255),
        "i8": (1, "<b", -128),
        "u16": (2, "<H", 65535),
        "i16": (3, "<h", -32768),
        "u32": (4, "<I", 2**32 - 1),
        "i32": (5, "<i", -(2**31)),
        "f32": (6, "<f", 0.5),
        "bool": (7, "<B", True),
        "u64": (10, "<Q", 2**64 - 1),
        "i64": (11, "<q", -(2**63)),
        "f64": (12, "<d", 0.1),
    }
    entries = [entry(name, kind, struct.pack(form, value)) for name, (kind, form, value) in scalars.items()]
    arrays = [
        entry("floats", 9, struct.pack("<IQ3f", 6, 3, 1, 2, 3)),
        entry("bools", 9, struct.pack("<IQ2B", 7, 2, 1, 0)),
        entry("strings", 9, struct.pack("<IQ", 8, 3) + string("a") + string("") + string("é🎉")),
        entry(
            "nested",
            9,
            struct.pack("<IQ", 9, 2) + struct.pack("<IQ1i", 5, 1, 7) + struct.pack("<IQ", 8, 1) + string("x"),
        ),
        entry("none", 9, struct.pack("<IQ", 4, 0)),
        entry("text", 8, string("line\nbreak")),
    ]
    with GgufFile(write(container(*entries, *arrays))) as file:
        for name, (_, _, value) in scalars.items():
            assert file.metadata[name] == value and type(file.metadata[name]) is type(value)
        assert file.metadata["floats"].tolist() == [1, 2, 3]
        assert file.metadata["bools"].tolist() == [True, False] and file.metadata["bools"].dtype == np.bool_
        assert file.metadata["strings"] == ["a", "", "é🎉"]
        assert file.metadata["nested"][0].tolist() == [7] and file.metadata["nested"][1] == ["x"]
        assert len(file.metadata["none"]) == 0
        assert file.metadata["text"] == "line\nbreak"
        assert dict(file.tensors) == {}


@pytest.mark.parametrize("version", [2, 3])
def test_versions_2_and_3_are_read(write: Callable[[bytes], Path], version: int) -> None:
    with GgufFile(write(container(entry("a", 4, b"\1\0\0\0"), version=version))) as file:
        assert (file.version, file.metadata["a"]) == (version, 1)


@pytest.mark.parametrize("kind", DECODED_KINDS)
def test_tensors_decode_as_the_gguf_package_decodes_them(tmp_path: Path, kind: str) -> None:
    expected = write_gguf(tmp_path / "m.gguf", model_metadata(), model_tensors(), kind=kind)
    with GgufFile(tmp_path / "m.gguf") as file:
        assert list(file.tensors) == list(expected)
        for name, values in expected.items():
            assert file.tensors[name].shape == values.shape
            np.testing.assert_array_equal(file.dequantize(name).reshape(values.shape), values)
        rows = np.array([5, 0, 3])
        embedding = expected["token_embd.weight"]
        np.testing.assert_array_equal(file.dequantize("token_embd.weight", rows), embedding[rows])
        np.testing.assert_array_equal(file.dequantize("token_embd.weight", slice(2, 4)), embedding[2:4])


def test_raw_bytes_are_a_read_only_view_that_outlives_the_file(tmp_path: Path) -> None:
    values = write_gguf(tmp_path / "m.gguf", model_metadata(), model_tensors())["output_norm.weight"]
    with GgufFile(tmp_path / "m.gguf") as file:
        raw = file.raw("output_norm.weight")
    assert not raw.flags.writeable
    np.testing.assert_array_equal(raw.view(np.float32)[0], values)


def test_another_alignment_is_followed(write: Callable[[bytes], Path]) -> None:
    content = container(
        entry("general.alignment", 4, struct.pack("<I", 256)),
        tensors=(tensor("a", (2,)), tensor("b", (1,), offset=256)),
        data=struct.pack("<2f", 1, 2) + bytes(248) + struct.pack("<f", 3),
        alignment=256,
    )
    with GgufFile(write(content)) as file:
        assert file.dequantize("a").tolist() == [[1, 2]] and file.dequantize("b").tolist() == [[3]]


BIG = 1 << 60
UNSOUND: dict[str, tuple[bytes, str]] = {
    "an empty file": (b"", "not a GGUF file"),
    "another format": (b"PK\3\4" + bytes(60), "wrong magic"),
    "version 1": (container(version=1), "version 1 is not supported"),
    "version 4": (container(version=4), "version 4 is not supported"),
    "big endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "more tensors than fit": (container(counts=(BIG, 0)), "tensors"),
    "more metadata than fits": (container(counts=(0, 60_000)), "do not fit"),
    "a key of the wrong length": (container(struct.pack("<Q", BIG) + b"key" + bytes(20)), "metadata key of"),
    "a key with a control character": (container(entry("a\x1b[2J", 4, bytes(4))), "control characters"),
    "an empty key": (container(entry("", 4, bytes(4) + bytes(8))), "empty"),
    "a key twice": (container(entry("a", 4, bytes(4)), entry("a", 4, bytes(4))), "appears twice"),
    "a key that is not UTF-8": (container(string(b"\xff\xfe") + struct.pack("<II", 4, 0)), "not UTF-8"),
    "an unknown value type": (container(entry("a", 13, bytes(16))), "unknown value type 13"),
    "a boolean of 2": (container(entry("a", 7, b"\2")), "boolean of value 2"),
    "an array of booleans of 3": (
        container(entry("a", 9, struct.pack("<IQ2B", 7, 2, 1, 3))),
        "boolean of value 3",
    ),
    "an array longer than the file": (container(entry("a", 9, struct.pack("<IQ", 6, 1000))), "values of a"),
    "an array of 2^60 strings": (container(entry("a", 9, struct.pack("<IQ", 8, BIG))), "items of a"),
    "an array whose size overflows": (
        container(entry("a", 9, struct.pack("<IQ", 12, 1 << 61))),
        "values of a",
    ),
    "a string longer than the file": (container(entry("a", 8, struct.pack("<Q", 500))), "the string of a"),
    "a string array that runs out": (
        container(entry("a", 9, struct.pack("<IQQ", 8, 2, 3) + b"abc" + bytes(4))),
        "a",
    ),
    "an array nested five deep": (
        container(entry("a", 9, struct.pack("<IQ", 9, 1) * 5 + struct.pack("<IQ", 4, 0))),
        "deeper than 4",
    ),
    "an alignment of 48": (container(entry("general.alignment", 4, struct.pack("<I", 48))), "power of two"),
    "an alignment of 0": (container(entry("general.alignment", 4, struct.pack("<I", 0))), "power of two"),
    "an alignment that is a text": (container(entry("general.alignment", 8, string("32"))), "power of two"),
    "a tensor twice": (
        container(tensors=(tensor("a", (1,)), tensor("a", (1,), offset=32)), data=bytes(64)),
        "appears twice",
    ),
    "a tensor of no dimension": (container(tensors=(tensor("a", ()),), data=bytes(64)), "0 dimensions"),
    "a tensor of five dimensions": (
        container(tensors=(tensor("a", (1,) * 5),), data=bytes(64)),
        "5 dimensions",
    ),
    "a dimension of 0": (container(tensors=(tensor("a", (4, 0)),), data=bytes(64)), "size 0"),
    "a size that overflows 64 bits": (
        container(tensors=(tensor("a", (BIG, BIG, BIG)),), data=bytes(64)),
        "ends at byte",
    ),
    "an unknown ggml type": (
        container(tensors=(tensor("a", (4,), kind=999),), data=bytes(64)),
        "ggml type 999",
    ),
    "a row that is no whole block": (
        container(tensors=(tensor("a", (33,), kind=8),), data=bytes(64)),
        "block 32",
    ),
    "an unaligned offset": (
        container(tensors=(tensor("a", (1,), offset=4),), data=bytes(64)),
        "multiple of 32",
    ),
    "a tensor past the end": (container(tensors=(tensor("a", (17,)),), data=bytes(64)), "ends at byte"),
    "an offset past the end": (
        container(tensors=(tensor("a", (1,), offset=BIG),), data=bytes(64)),
        "ends at byte",
    ),
    "tensors that overlap": (
        container(tensors=(tensor("a", (16,)), tensor("b", (8,), offset=32)), data=bytes(64)),
        "overlap",
    ),
}


@pytest.mark.parametrize("case", UNSOUND)
def test_unsound_files_are_refused_in_one_line(write: Callable[[bytes], Path], case: str) -> None:
    content, expected = UNSOUND[case]
    assert expected in refusal(write(content))


def test_a_missing_file_and_a_directory_are_refused(tmp_path: Path) -> None:
    assert "cannot be read" in refusal(tmp_path / "absent.gguf")
    assert "cannot be read" in refusal(tmp_path)


def test_every_truncation_of_a_file_is_refused(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", model_metadata(), model_tensors(), kind="Q8_0")
    whole = (tmp_path / "m.gguf").read_bytes()
    with GgufFile(tmp_path / "m.gguf") as file:
        end = max(tensor.end for tensor in file.tensors.values())
    cut = tmp_path / "cut.gguf"
    for length in [*range(0, 2000, 7), *range(2000, end, 997), end - 1]:
        cut.write_bytes(whole[:length])
        refusal(cut)


def test_a_type_that_cannot_be_decoded_is_named(write: Callable[[bytes], Path]) -> None:
    content = container(tensors=(tensor("a", (4,), kind=26), tensor("b", (4,), offset=32)), data=bytes(64))
    with GgufFile(write(content)) as file:
        for use in (file.check_decodable, file.dequantize):
            with pytest.raises(PomonaError, match=r"tensor a has the type I32.*; use a file in F16"):
                use("a")
        file.check_decodable("b")
        with pytest.raises(PomonaError, match="tensor c is missing"):
            file.raw("c")


def test_strings_beyond_the_limits_are_refused(
    write: Callable[[bytes], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    strings = struct.pack("<IQ", 8, 3) + string("a") + string("bb") + string("c")
    path = write(container(entry("a", 9, strings), entry("b", 9, strings)))
    GgufFile(path).close()
    monkeypatch.setattr(gguf_file, "MAX_LIST_ITEMS", 5)  # counts over the whole file, not per array
    assert "3 items of b, the limit is 2" in refusal(path)
    monkeypatch.setattr(gguf_file, "MAX_LIST_ITEMS", 6)
    monkeypatch.setattr(gguf_file, "MAX_STRING_BYTES", 1)
    assert "a string of 2 bytes" in refusal(path)


def test_a_vocabulary_of_100_000_strings_is_read_in_a_blink(write: Callable[[bytes], Path]) -> None:
    strings = b"".join(string(f"token{number}") for number in range(100_000))
    path = write(container(entry("tokens", 9, struct.pack("<IQ", 8, 100_000) + strings)))
    best = float("inf")
    for _ in range(3):
        start = time.process_time()
        with GgufFile(path) as file:
            assert file.metadata["tokens"][99_999] == "token99999"
        best = min(best, time.process_time() - start)
    assert best < 0.3, f"{best:.3f} s of processor time"


def test_mutated_files_are_read_or_refused_within_bounds(tmp_path: Path) -> None:
    """3,000 deterministic mutations of a sound file: each gives a model's metadata and tensors, or a
    PomonaError; never another exception, and never memory out of proportion to the file."""
    path = tmp_path / "m.gguf"
    write_gguf(path, model_metadata(), model_tensors(), kind="Q4_0")
    whole = path.read_bytes()
    header = GgufFile(path).tensors["token_embd.weight"].start
    random = np.random.default_rng(20_240_601)
    numbers = [0, 1, 2, 8, 9, 0x7F, 0xFF, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 32, 1 << 60, (1 << 64) - 1]
    outcomes, peak = {"read": 0, "refused": 0}, 0
    for round_ in range(3000):
        content = bytearray(whole)
        for _ in range(random.integers(1, 4)):
            at = int(random.integers(4, header if round_ % 8 else len(whole)))
            match random.integers(0, 6):
                case 0:
                    content[at] ^= 1 << int(random.integers(0, 8))
                case 1:
                    content[at] = int(random.integers(0, 256))
                case 2:
                    content[at : at + 8] = struct.pack("<Q", numbers[random.integers(0, len(numbers))])
                case 3:
                    content[at : at + 4] = struct.pack(
                        "<I", numbers[random.integers(0, len(numbers))] & 0xFFFFFFFF
                    )
                case 4:
                    del content[at : at + int(random.integers(1, 40))]
                case _:
                    content[at:at] = content[at : at + int(random.integers(1, 40))]
        path.write_bytes(content)
        if traced := round_ % 10 == 0:  # tracing makes everything five times slower
            tracemalloc.start()
        try:
            with GgufFile(path) as file:
                tokenizer = convert_tokenizer(file.metadata, path, max_length=256)
                read_config(file, tokenizer).tensor_shapes()
                for name in file.tensors:
                    file.check_decodable(name)
                    file.dequantize(name, slice(0, 16))
            outcomes["read"] += 1
        except PomonaError as error:
            assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
            outcomes["refused"] += 1
        if traced:
            peak = max(peak, tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    assert min(outcomes.values()) > 100, outcomes  # the mutations reach both sides
    assert 0 < peak < 16 << 20, f"{peak} bytes for files of {len(whole)} bytes"
