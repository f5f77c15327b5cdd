"""A model of random weights for the benchmarks, ours and llama.cpp's, with no 16-bit checkpoint between.

    python -m benchmarks.random_model                  # afm-on-device (2.7 B), some minutes, 4.7 GB
    python -m benchmarks.random_model --preset afm-nano --bits 4 --folder /tmp/nano

Speed does not depend on what the weights are, only on their shape and format, so a large model needs neither
download nor compression to be measured. Written are, in one folder:

    NAME-3.5bit/            our model directory: random palettes and indices, an int8 embedding (at 3.5 bits
                            the layers take 4 and 3 bits in turn, at 3 all take 3, ...)
    q4_k_m.gguf             the same shape for llama.cpp, quantised by its own quantiser
    q4_0_pure.gguf

The two sides hold different weights, and neither has a tokenizer: the benchmarks give token ids. What is
there already is kept, so an interrupted run goes on where it stopped. The 16-bit GGUF that llama.cpp's
quantiser starts from (the largest file by far) is deleted at the end.
"""

from __future__ import annotations

import argparse
import math
import shutil
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import BenchmarkError
from benchmarks.peer import QUANTISATIONS, ROOT

if TYPE_CHECKING:
    from pomona.models.config import ModelConfig
    from pomona.models.safetensors_file import TensorSpec

LARGE = "afm-on-device"
SOURCE = "f16.gguf"  # what llama.cpp's quantiser reads; deleted at the end
BITS = 3.5  # per projection weight, tables and scales not counted
TABLE_COLUMNS = 256  # what `pomona compress` takes for models of this size
ENTRY_DEVIATION = 40.0  # of the int8 table entries, cut at +-127
CHUNK = 1 << 24  # values drawn at a time

# For the estimates: bytes per weight of llama.cpp's files; weights per second on two cores, of our writer and
# of everything that llama.cpp's files need.
PEER_BYTES_PER_WEIGHT = {"q4_k_m.gguf": 0.66, "q4_0_pure.gguf": 0.57}
PACKED_PER_SECOND, PEER_PER_SECOND = 200e6, 20e6


def default_folder(preset: str = LARGE) -> Path:
    """Where the files lie: beside the cached models, outside the repository."""
    from pomona.models.store import cache_dir

    return cache_dir() / "benchmarks" / preset


def packed_directory(folder: Path, preset: str = LARGE, bits: float = BITS) -> Path:
    """Our model directory in `folder`."""
    return folder / f"{preset}-{bits:g}bit"


def missing_files(folder: Path, preset: str = LARGE, bits: float = BITS) -> list[str]:
    """What `make_models` would still have to write, by name."""
    ours = packed_directory(folder, preset, bits)
    return [path.name for path in (ours, *(folder / name for name in QUANTISATIONS)) if not path.exists()]


def make_models(preset: str, folder: Path, peer: Path, bits: float = BITS) -> None:
    """Writes what is missing of the files named above.

    peer: the Python of the environment with llama.cpp. bits: of our projections, 2 to 4 in halves. Raises
    BenchmarkError (other bits, no room on the disk, no such environment, llama.cpp refuses) and PomonaError
    (no such preset).
    """
    from pomona.models.presets import preset as find

    config = find(preset)
    missing = missing_files(folder, preset, bits)
    if not set(missing) & set(QUANTISATIONS):
        (folder / SOURCE).unlink(missing_ok=True)  # of a run that was stopped just before
    if not missing:
        print(f"{folder}: everything is there")
        return
    folder.mkdir(parents=True, exist_ok=True)
    ours = packed_directory(folder, preset, bits)
    _announce(config, bits, folder, ours.name, missing)
    if ours.name in missing:
        started = time.perf_counter()
        write_packed(config, ours, bits)
        _tell(ours, started)
    if quantisations := [name for name in QUANTISATIONS if name in missing]:
        _write_peer_files(config, folder, quantisations, peer)


# --- ours ------------------------------------------------------------------------------------------------


def write_packed(config: ModelConfig, target: Path, bits: float = BITS, seed: int = 0) -> None:
    """A compressed model directory of random weights: projections in palettes, the embedding int8."""
    from pomona.models.model_directory import CONFIG_FILE, WEIGHTS_FILE, ModelDirectoryWriter, write_json
    from pomona.models.palettized import QuantizationConfig, fingerprint
    from pomona.models.safetensors_file import Checkpoint, SafetensorsWriter, aligned_order

    specs, bits_of = _packed_specs(config, bits)
    specs = aligned_order(specs)
    columns = {name.removesuffix(".weight"): shape[-1] for name, shape in config.tensor_shapes().items()}
    with ModelDirectoryWriter(target, need_bytes=sum(spec.nbytes for spec in specs)) as writer:
        with SafetensorsWriter(writer.path / WEIGHTS_FILE, specs, {"format": "pt"}) as file:
            for done, spec in enumerate(specs):
                _progress("packed model", done, len(specs))
                file.write_chunks(spec.name, _packed_values(spec, columns, seed))
            _progress("packed model", len(specs), len(specs))
        with Checkpoint(writer.path) as written:
            quantization = QuantizationConfig(fingerprint(written), bits_of)
        write_json(
            writer.path / CONFIG_FILE, {**config.to_hf(), "quantization_config": quantization.to_json()}
        )


def _packed_specs(config: ModelConfig, bits: float) -> tuple[list[TensorSpec], dict[str, int]]:
    """The tensors of the packed file, and the bits of each packed module."""
    if bits * 2 != round(bits * 2) or not 2 <= bits <= 4:
        raise BenchmarkError(f"--bits {bits:g}: choose 2, 2.5, 3, 3.5 or 4")
    from pomona.models.palettized import can_pack, int8_specs, palette_specs
    from pomona.models.safetensors_file import TensorSpec

    specs: list[TensorSpec] = []
    bits_of: dict[str, int] = {}
    linear = config.linear_shapes()
    for name, shape in config.tensor_shapes().items():
        module = name.removesuffix(".weight")
        if len(shape) == 2 and can_pack(shape[0], shape[1]):
            if module in linear:
                layer = int(module.split(".")[2])
                bits_of[module] = math.ceil(bits) if layer % 2 == 0 else math.floor(bits)
                table = max(c for c in range(64, TABLE_COLUMNS + 1, 64) if shape[1] % c == 0)
                specs += palette_specs(module, shape[0], shape[1], table, bits_of[module])
            else:
                specs += int8_specs(module, shape[0], shape[1])
                bits_of[module] = 8
        else:
            specs.append(TensorSpec(name, "BF16", shape))
    return specs, bits_of


def _packed_values(spec: TensorSpec, columns: dict[str, int], seed: int) -> Iterator[NDArray[Any]]:
    """Random contents of one tensor in pieces. Weights have a variance of 1 / columns, norms are 1."""
    module, _, part = spec.name.rpartition(".weight")
    generator = _generator(spec.name, seed)
    for count in _pieces(math.prod(spec.shape)):
        if part == "_indices":
            yield generator.integers(0, 256, count, np.uint8)
        elif part == "_int8":
            yield generator.integers(1, 256, count, np.uint8)  # value + 128, and -128 is no value
        elif part == "_tables":
            entries = ENTRY_DEVIATION * generator.standard_normal(count, np.float32)
            yield np.sort(np.clip(np.rint(entries), -127, 127).astype(np.int8).reshape(-1, spec.shape[-1]))
        elif part == "_table_scales":
            yield np.full(count, 1 / ENTRY_DEVIATION, np.float16)
        elif part == "_row_scales" and module == "model.embed_tokens":
            yield np.full(count, math.sqrt(3 / columns[module]) / 127, np.float16)  # even values: 127^2 / 3
        elif part == "_row_scales":
            yield np.full(count, 1 / math.sqrt(columns[module]), np.float16)
        elif len(spec.shape) == 1:
            yield np.full(count, 0x3F80, np.uint16)  # 1 in bfloat16
        else:
            raise BenchmarkError(f"{spec.name}: no random values for a tensor of this kind; choose a preset")


# --- llama.cpp's -----------------------------------------------------------------------------------------


def _write_peer_files(config: ModelConfig, folder: Path, names: Sequence[str], peer: Path) -> None:
    if not peer.is_file():
        raise BenchmarkError(f"{peer}: llama.cpp is not set up; run `make bench-setup`")
    source = folder / SOURCE
    if not source.is_file():
        started = time.perf_counter()
        unfinished = source.with_suffix(".part")
        write_gguf(config, unfinished)
        unfinished.replace(source)
        _tell(source, started)
    for name in names:
        started = time.perf_counter()
        command = [str(peer.absolute()), "-m", "benchmarks.peer", "quantize"]
        done = subprocess.run(
            [*command, str(folder.absolute()), str(source.absolute()), name], cwd=ROOT, check=False
        )
        if done.returncode != 0:
            raise BenchmarkError(f"{source}: llama.cpp cannot quantise it; its last words stand above")
        _tell(folder / name, started)
    source.unlink()


def write_gguf(config: ModelConfig, path: Path, seed: int = 0) -> None:
    """The shape of `config` as a 16-bit GGUF of random weights, tensor by tensor."""
    from benchmarks import gguf_writer

    gguf_writer.write_gguf(config, path, lambda name, shape: _plain_values(name, shape, seed), _progress)


def _plain_values(name: str, shape: tuple[int, ...], seed: int) -> NDArray[Any]:
    if len(shape) == 1:
        return np.ones(shape, np.float32)
    generator, deviation = _generator(name, seed), np.float32(1 / math.sqrt(shape[1]))
    values = np.empty(math.prod(shape), np.float16)
    start = 0
    for count in _pieces(values.size):
        values[start : start + count] = deviation * generator.standard_normal(count, np.float32)
        start += count
    return values.reshape(shape)


# --- both ------------------------------------------------------------------------------------------------


def _announce(config: ModelConfig, bits: float, folder: Path, ours: str, missing: Sequence[str]) -> None:
    """Says what will be written and how long it takes; refuses where the disk has no room for it."""
    weights = sum(math.prod(shape) for shape in config.tensor_shapes().values())
    sizes = {name: weights * PEER_BYTES_PER_WEIGHT[name] for name in QUANTISATIONS if name in missing}
    for_a_while = 2.0 * weights if sizes and not (folder / SOURCE).is_file() else 0.0
    if ours in missing:
        sizes[ours] = sum(spec.nbytes for spec in _packed_specs(config, bits)[0])
    files = ", ".join(f"{name} {size / 1e9:.1f} GB" for name, size in sizes.items())
    need, free = sum(sizes.values()) + for_a_while, shutil.disk_usage(folder).free
    seconds = weights / PEER_PER_SECOND if any(name in missing for name in QUANTISATIONS) else 0.0
    seconds += weights / PACKED_PER_SECOND if ours in missing else 0.0
    print(
        f"{weights / 1e9:.2f} B weights, into {folder}: {files}, and {for_a_while / 1e9:.1f} GB for a while; "
        f"about {max(1, round(seconds / 60))} min on two free cores",
        flush=True,
    )
    if need > free:
        raise BenchmarkError(
            f"{folder}: needs {need / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free; name another --folder"
        )


def _generator(name: str, seed: int) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


def _pieces(total: int) -> Iterator[int]:
    for start in range(0, total, CHUNK):
        yield min(CHUNK, total - start)


def _tell(path: Path, started: float) -> None:
    files = path.rglob("*") if path.is_dir() else [path]
    size = sum(file.stat().st_size for file in files)
    print(f"{path}: {size / 1e9:.2f} GB in {time.perf_counter() - started:.0f} s", flush=True)


def _progress(label: str, done: int, total: int) -> None:
    if sys.stderr.isatty():
        print(f"\r{label}: {done}/{total}", end="\n" if done == total else "", file=sys.stderr, flush=True)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.random_model", description=(__doc__ or "").split("\n")[0]
    )
    add = parser.add_argument
    add("--preset", default=LARGE, help="the shape, of models/presets.py (default: %(default)s)")
    add(
        "--bits", type=float, default=BITS, help="of our projections: 2 to 4 in halves (default: %(default)g)"
    )
    add("--folder", type=Path, help="where to (default: benchmarks/PRESET in the cache of models)")
    add("--peer", default=str(ROOT / ".peer/bin/python"), help="llama.cpp's Python (default: that of .peer)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    from pomona.errors import PomonaError

    options = parser().parse_args(argv)
    try:
        folder = options.folder or default_folder(options.preset)
        make_models(options.preset, folder, Path(options.peer), options.bits)
    except (BenchmarkError, PomonaError) as error:
        print(f"benchmarks.random_model: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
