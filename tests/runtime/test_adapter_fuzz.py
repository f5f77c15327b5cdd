"""Adapter directories with anything in them: an adapter that runs, or one PomonaError of one line.

A good directory is damaged by a few random changes: of the JSON values, of the header of the safetensors
file, of bytes anywhere, of the files themselves. FUZZ_SECONDS (see `make fuzz`) makes it go on for so long,
from a random seed; FUZZ_SEED repeats one case.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from pomona.errors import PomonaError
from pomona.models.config import ModelConfig
from pomona.models.random_init import random_model
from pomona.runtime.adapters import load_adapter
from pomona.runtime.engine import Engine, StepInput

CASES = 400  # of a plain run
CONFIG, WEIGHTS, PROVENANCE = "adapter_config.json", "adapter_model.safetensors", "pomona.json"
TINY = ModelConfig(
    model_type="llama",
    vocab_size=64,
    hidden_size=64,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=32,
    max_position_embeddings=128,
    rope_theta=10_000.0,
    rms_norm_eps=1e-5,
    tie_word_embeddings=True,
)
PROMPT = [1, 2, 3, 4, 5]

VALUES: list[Any] = [
    *(None, True, False, 0, 1, 2, 3, -1, 7, 1024, 1025, 2**31, 2**63, 10**400, -(10**400)),
    *(0.5, 1e-320, 1e38, 1e39, 1e308),
    *("", "LORA", "lora", "none", "all-linear", "all", "q_proj", "mlp.down_proj"),
    *("x\ny", "\x1b[31m", "\u0000", "é" * 300),
    *([], [0], [1, 0], [True], [5], [-1], [[]], [None]),
    *(["q_proj"], ["q_proj", "q_proj"], ["lm_head"], [""], ["x\ny"]),
    *({}, {"q_proj": 4}, {"": None}, [{}] * 3),
]
NUMBERS: list[Any] = [
    *(-1, 0, 1, 2, 3, 4, 8, 63, 64, 65, 128, 2**31, 2**32, 2**40, 2**63, 2**64, 10**30),
    *(True, 0.0, 1.5, None, "4"),
]
# Of four bytes: NaN, minus infinity, the largest and the smallest float32.
PATTERNS = [b"\0\0\xc0\x7f", b"\0\0\x80\xff", b"\xff\xff\x7f\x7f", b"\1\0\0\0"]
DTYPES = ["BF16", "F16", "F32", "F64", "I8", "U8", "BOOL", "F8_E4M3", "", "f32", None, 3]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    directory = random_model(TINY, tmp_path_factory.mktemp("adapter-fuzz") / "model", seed=5)
    return Engine.load(directory, threads=1, kv_tokens=256)


@pytest.fixture(scope="module")
def good(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("adapter-fuzz-good") / "adapter"
    directory.mkdir()
    draw = np.random.default_rng(1)
    modules, rank = ["q_proj", "o_proj", "down_proj"], 3
    tensors = {}
    for module, (rows, columns) in TINY.linear_shapes().items():
        if module.rpartition(".")[2] in modules:
            for part, shape in (("lora_A", (rank, columns)), ("lora_B", (rows, rank))):
                name = f"base_model.model.{module}.{part}.weight"
                tensors[name] = draw.normal(size=shape).astype(np.float32)
    save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})
    options = {"peft_type": "LORA", "r": rank, "lora_alpha": 6, "target_modules": modules, "bias": "none",
               "use_dora": False, "rank_pattern": {}, "layers_to_transform": None}  # fmt: skip
    (directory / CONFIG).write_text(json.dumps(options))
    (directory / PROVENANCE).write_text(json.dumps({"base_fingerprint": engine.fingerprint}))
    return directory


# --- changes


def change_json(path: Path, draw: random.Random) -> None:
    """A value of a JSON object is replaced, removed, or added."""
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return
    if not isinstance(content, dict):
        return
    keys = [*content, "r", "lora_alpha", "use_rslora", "modules_to_save", "new_option", "x\ny"]
    key = draw.choice(keys)
    if draw.random() < 0.2:
        content.pop(key, None)
    else:
        content[key] = draw.choice(VALUES)
    path.write_text(json.dumps(content))


def change_header(path: Path, draw: random.Random) -> None:
    """The header of the safetensors file says something else; the data stay."""
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    try:
        header = json.loads(raw[8 : 8 + length])
        names = [name for name in header if name != "__metadata__"]
        name = draw.choice(names)
        entry = header[name]
        match draw.randrange(7):
            case 0:
                entry["dtype"] = draw.choice(DTYPES)
            case 1:
                entry["shape"][draw.randrange(2)] = draw.choice(NUMBERS)
            case 2:
                turned = entry["shape"][::-1]
                shapes = [[], [64], [3, 64, 1], [0, 64], [2**62, 4], 5, None, "x", turned]
                entry["shape"] = draw.choice(shapes)
            case 3:
                entry["data_offsets"][draw.randrange(2)] = draw.choice(NUMBERS)
            case 4:
                twin = name.replace("lora_A", "lora_B")
                other = draw.choice(["", "x\ny", name.upper(), name + ".weight", twin, "\x1b[2J"])
                header[other] = header.pop(name)
            case 5:
                header[draw.choice([name, "__metadata__", "more"])] = draw.choice(VALUES)
            case _:
                del header[name]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return  # an earlier change left nothing to change here
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])


def change_bytes(path: Path, draw: random.Random) -> None:
    """Bytes are flipped, inserted, removed; most of them near the beginning, where the headers are."""
    raw = bytearray(path.read_bytes())
    for _ in range(draw.randint(1, 8)):
        end = len(raw) if draw.random() < 0.3 else min(len(raw), 600)
        at = draw.randint(0, max(end - 1, 0))
        match draw.randrange(4):
            case 0 if raw:
                raw[at] = draw.randrange(256)
            case 1:
                raw[at:at] = draw.choice([b"\0", b"{", b"[" * 5000, b"\xff\xfe", b'"', b"9" * 30, b"\n"])
            case 2:
                del raw[at : at + draw.randint(1, 40)]
            case _:
                raw[at : at + 4] = draw.choice(PATTERNS)
    if draw.random() < 0.2:
        del raw[draw.randint(0, len(raw)) :]
    path.write_bytes(raw)


def change_values(path: Path, draw: random.Random) -> None:
    """Numbers that are none, or as large as they come, in the data."""
    raw = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(raw[:8], "little")
    for _ in range(draw.randint(1, 5)):
        if len(raw) >= start + 4:
            at = start + 4 * draw.randrange((len(raw) - start) // 4)
            raw[at : at + 4] = draw.choice(PATTERNS)
    path.write_bytes(raw)


def change_file(path: Path, draw: random.Random) -> None:
    """The file is missing, empty, a folder, or a link to itself."""
    path.unlink()
    match draw.randrange(4):
        case 0:
            path.mkdir()
        case 1:
            path.write_bytes(b"")
        case 2:
            path.symlink_to(path)


Change = Callable[[Path, random.Random], None]
CHANGES: dict[str, list[Change]] = {
    CONFIG: [change_json, change_json, change_json, change_bytes, change_file],
    WEIGHTS: [change_header, change_header, change_header, change_bytes, change_values, change_file],
    PROVENANCE: [change_json, change_bytes, change_file],
}


def damage(directory: Path, draw: random.Random) -> None:
    for _ in range(draw.choice([0, 1, 1, 1, 2, 2, 3, 5])):
        name = draw.choice([CONFIG, CONFIG, WEIGHTS, WEIGHTS, PROVENANCE])
        if (directory / name).is_file():
            draw.choice(CHANGES[name])(directory / name, draw)


def answer(engine: Engine, directory: Path | None) -> list[int]:
    adapter = None if directory is None else load_adapter(engine, directory)
    with engine.new_sequence(adapter) as sequence:
        said = engine.step([StepInput(sequence, PROMPT)])
        said += engine.step([StepInput(sequence, said)])
    return said


def seeds() -> Iterator[int]:
    seconds = float(os.environ.get("FUZZ_SECONDS", "0"))
    if "FUZZ_SEED" in os.environ:
        yield int(os.environ["FUZZ_SEED"])
    elif seconds > 0:
        end, seed = time.monotonic() + seconds, time.time_ns()
        while time.monotonic() < end:
            yield seed
            seed += 1
    else:
        yield from range(CASES)


def test_a_damaged_adapter_directory_is_run_or_refused_in_one_line(
    engine: Engine, good: Path, tmp_path: Path
) -> None:
    plain = answer(engine, None)
    assert answer(engine, good) != plain
    ran, refused, messages = 0, 0, set()
    for seed in seeds():
        directory = tmp_path / "adapter"
        shutil.copytree(good, directory)
        damage(directory, random.Random(seed))
        try:
            said = answer(engine, directory)
        except PomonaError as error:
            text = str(error)
            assert text.isprintable() and len(text) > 20, f"FUZZ_SEED={seed}: {text!r}"
            refused += 1
            messages.add(text.partition(": ")[2][:24])
        except Exception as error:
            raise AssertionError(f"FUZZ_SEED={seed}: {type(error).__name__} {error}") from error
        else:
            assert all(0 <= token < TINY.vocab_size for token in said), f"FUZZ_SEED={seed}"
            ran += 1
        assert engine.native.free_tokens == engine.native.kv_tokens, f"FUZZ_SEED={seed}"
        shutil.rmtree(directory)
    assert answer(engine, None) == plain
    print(f"{ran} adapters ran, {refused} were refused for {len(messages)} reasons")
    if "FUZZ_SEED" not in os.environ:
        assert ran > 0 and refused > ran and len(messages) > 10
