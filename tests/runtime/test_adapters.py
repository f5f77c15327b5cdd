"""Adapters: parity with PEFT, mixed batches, versions, the memory budget, and everything that is refused."""

from __future__ import annotations

import gc
import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from pomona.errors import PomonaError
from pomona.models.config import ModelConfig
from pomona.runtime.adapters import (
    AdapterCache,
    AdapterMemoryFullError,
    LoadedAdapter,
    Precision,
    load_adapter,
)
from pomona.runtime.engine import Engine, StepInput

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def write_adapter(
    directory: Path,
    config: ModelConfig,
    *,
    rank: int = 8,
    modules: list[str] | None = None,
    seed: int = 0,
    size: float = 0.3,
    base: str | None = None,
    **options: Any,
) -> Path:
    """A random adapter in PEFT's layout, strong enough to change what the model says."""
    modules = modules or ALL
    random = np.random.default_rng(seed)
    tensors: dict[str, NDArray[Any]] = {}
    for module, (rows, columns) in config.linear_shapes().items():
        if module.rpartition(".")[2] in modules:
            name = f"base_model.model.{module}"
            a, b = random.normal(size=(rank, columns)), random.normal(size=(rows, rank))
            tensors[f"{name}.lora_A.weight"] = (a / columns**0.5).astype(np.float32)
            tensors[f"{name}.lora_B.weight"] = (b * size / rank**0.5).astype(np.float32)
    directory.mkdir(parents=True)
    save_file(tensors, directory / "adapter_model.safetensors")
    options = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": modules, **options}
    (directory / "adapter_config.json").write_text(json.dumps(options))
    if base is not None:
        (directory / "pomona.json").write_text(json.dumps({"base_fingerprint": base}))
    return directory


@pytest.fixture
def engine(small_dir: Path) -> Engine:
    return Engine.load(small_dir, threads=2)


def answer(
    engine: Engine, requests: list[tuple[LoadedAdapter | None, list[int]]], steps: int = 10
) -> list[list[int]]:
    """Greedy answers to several requests that share every step."""
    sequences = [engine.new_sequence(adapter) for adapter, _ in requests]
    tokens = [ids for _, ids in requests]
    answers: list[list[int]] = [[] for _ in requests]
    for _ in range(steps):
        sampled = engine.step([StepInput(s, ids) for s, ids in zip(sequences, tokens, strict=True)])
        for said, token in zip(answers, sampled, strict=True):
            said.append(token)
        tokens = [[token] for token in sampled]
    for sequence in sequences:
        sequence.close()
    return answers


def adapted_logits(engine: Engine, adapter: LoadedAdapter | None, ids: list[int]) -> NDArray[np.float32]:
    out = np.empty((len(ids), engine.config.vocab_size), np.float32)
    with engine.new_sequence(adapter) as sequence:
        engine.native.logits(sequence.handle, np.array(ids, np.int32), out)
    return out


def log_softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def mean_kl(reference: NDArray[Any], other: NDArray[Any]) -> float:
    p, q = log_softmax(reference), log_softmax(other)
    return float((np.exp(p) * (p - q)).sum(axis=-1).mean())


@pytest.mark.parametrize(
    ("rank", "modules"), [(8, ALL), (7, ["q_proj", "v_proj"]), (16, ["down_proj", "o_proj", "up_proj"])]
)
def test_logits_equal_those_of_peft(
    engine: Engine, small_dir: Path, tmp_path: Path, rank: int, modules: list[str]
) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    path = write_adapter(tmp_path / "a", engine.config, rank=rank, modules=modules)
    # The engine keeps adapters in bfloat16; the reference gets the same values.
    weights = {
        name: torch.tensor(t).bfloat16().float().numpy()
        for name, t in load_file(path / "adapter_model.safetensors").items()
    }
    save_file(weights, path / "adapter_model.safetensors")
    ids = [int(i) for i in np.random.default_rng(1).integers(0, engine.config.vocab_size, 90)]
    base = AutoModelForCausalLM.from_pretrained(small_dir, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, str(path))
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0].numpy()
    got = adapted_logits(engine, load_adapter(engine, path), ids)
    plain = adapted_logits(engine, None, ids)
    assert mean_kl(expected, got) < 1e-4
    assert mean_kl(expected, plain) > 100 * mean_kl(expected, got)


def test_int8_says_what_bf16_says(engine: Engine, tmp_path: Path) -> None:
    """What is lost is a small part of what the adapter changes; half of the memory is won."""
    path = write_adapter(tmp_path / "a", engine.config, rank=16)
    bf16, int8 = load_adapter(engine, path), load_adapter(engine, path, precision="int8")
    ids = [int(i) for i in np.random.default_rng(1).integers(0, engine.config.vocab_size, 90)]
    expected = adapted_logits(engine, bf16, ids)
    lost = mean_kl(expected, adapted_logits(engine, int8, ids))
    changed = mean_kl(expected, adapted_logits(engine, None, ids))
    assert 0 < lost < changed / 1000, (lost, changed)
    assert int8.bytes < 0.6 * bf16.bytes


def test_a_cache_loads_in_its_precision(engine: Engine, tmp_path: Path) -> None:
    path = write_adapter(tmp_path / "a", engine.config, rank=16)
    caches = [AdapterCache(engine), AdapterCache(engine, precision="int8")]
    for cache in caches:
        cache.register("task", path)
    bf16, int8 = (cache.acquire("task") for cache in caches)
    assert int8.bytes == load_adapter(engine, path, precision="int8").bytes < bf16.bytes
    assert [s.bytes for s in caches[1].status()] == [int8.bytes] == [caches[1].alive_bytes]
    with pytest.raises(PomonaError, match="choose bf16 or int8"):
        load_adapter(engine, path, precision="int4")  # type: ignore[arg-type]
    with pytest.raises(PomonaError, match="choose bf16 or int8"):
        AdapterCache(engine, precision="int4")  # type: ignore[arg-type]


def test_a_mixed_batch_equals_every_adapter_alone(engine: Engine, tmp_path: Path) -> None:
    """Different ranks, target modules and precisions, one of them twice, and no adapter, in one batch."""
    specs: list[dict[str, Any]] = [
        {"rank": 8},
        {"rank": 3, "modules": ["q_proj", "down_proj"], "seed": 1},
        {"rank": 16, "modules": ["gate_proj"], "seed": 2},
    ]
    adapters: list[LoadedAdapter | None] = [
        load_adapter(engine, write_adapter(tmp_path / str(i), engine.config, **spec))
        for i, spec in enumerate(specs)
    ]
    adapters.append(load_adapter(engine, tmp_path / "0", precision="int8"))
    random = np.random.default_rng(5)
    lengths = (30, 30, 3, 17, 17, 41)
    prompts = [[int(i) for i in random.integers(0, engine.config.vocab_size, n)] for n in lengths]
    requests = list(zip([*adapters, None, adapters[0]], prompts, strict=True))
    together = answer(engine, requests)
    assert together == [answer(engine, [request])[0] for request in requests]
    same_prompt = [(adapter, prompts[0]) for adapter in [*adapters, None]]
    assert len({tuple(said) for said in answer(engine, same_prompt)}) > 1, "the adapters change nothing"


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_logits_do_not_depend_on_chunks_neighbours_or_threads(
    small_4bit_dir: Path, tmp_path: Path, precision: Precision
) -> None:
    """Few rows of an adapter divide the threads' work otherwise than many; one and the same bits."""
    engines = [Engine.load(small_4bit_dir, threads=threads) for threads in (1, 2, 3)]
    config = engines[0].config
    path = write_adapter(tmp_path / "a", config, rank=12, base=engines[0].fingerprint)
    ids = [int(i) for i in np.random.default_rng(3).integers(0, config.vocab_size, 75)]
    whole: NDArray[np.float32] | None = None
    for engine in engines:
        adapter = load_adapter(engine, path, precision=precision)
        for size in (75, 1, 7, 16, 17):
            with engine.new_sequence(adapter) as sequence:
                out = np.empty((len(ids), config.vocab_size), np.float32)
                for start in range(0, len(ids), size):
                    part = np.array(ids[start : start + size], np.int32)
                    engine.native.logits(sequence.handle, part, out[start : start + size])
            whole = out if whole is None else whole
            assert np.array_equal(out, whole), (engine.threads, size)
        # Two sequences of one adapter are neighbours and go as one; with others between them they do not.
        requests = [(adapter, ids), (adapter, ids[:9]), (None, ids[:5]), (adapter, ids[:20])]
        assert answer(engine, requests, 3) == [answer(engine, [r], 3)[0] for r in requests]


def test_a_sequence_keeps_the_version_that_it_started_with(engine: Engine, tmp_path: Path) -> None:
    old, new = (write_adapter(tmp_path / str(i), engine.config, seed=i) for i in (1, 2))
    ids = list(range(20))
    cache = AdapterCache(engine)
    cache.register("task", old)
    before = answer(engine, [(cache.acquire("task"), ids)])[0]

    sequence = engine.new_sequence(cache.acquire("task"))
    said = engine.step([StepInput(sequence, ids)])
    assert cache.replace("task", new) == 2
    for _ in range(9):
        said += engine.step([StepInput(sequence, said[-1:])])
    assert said == before
    assert (
        answer(engine, [(cache.acquire("task"), ids)])[0]
        == answer(engine, [(load_adapter(engine, new), ids)])[0]
        != before
    )
    assert cache.alive_bytes == 2 * cache.acquire("task").bytes
    sequence.close()
    gc.collect()
    assert cache.alive_bytes == cache.acquire("task").bytes


def test_memory_stays_within_the_budget(engine: Engine, tmp_path: Path) -> None:
    paths = [write_adapter(tmp_path / str(i), engine.config, seed=i, rank=4) for i in range(12)]
    size = load_adapter(engine, paths[0]).bytes
    cache = AdapterCache(engine, budget_bytes=3 * size)
    for i, path in enumerate(paths):
        cache.register(str(i), path)
    cache.pin("0")
    for i in [*range(12), 3, 7, 0]:
        cache.acquire(str(i))
        gc.collect()
        assert cache.alive_bytes <= 3 * size
    status = {s.name: s for s in cache.status()}
    assert status["0"].resident and status["0"].loads == 1, "a pinned adapter stays"
    assert sum(s.resident for s in status.values()) == 3
    assert status["7"].resident and status["7"].loads == 2
    cache.pin("7")
    cache.pin("3")
    with pytest.raises(PomonaError, match="unpin one"):
        cache.acquire("5")


def test_the_least_recently_used_adapter_goes_first(engine: Engine, tmp_path: Path) -> None:
    paths = [write_adapter(tmp_path / str(i), engine.config, seed=i, rank=4) for i in range(3)]
    cache = AdapterCache(engine, budget_bytes=2 * load_adapter(engine, paths[0]).bytes)
    for name, path in zip("abc", paths, strict=True):
        cache.register(name, path)
    for name in "abac":
        cache.acquire(name)
    assert [s.name for s in cache.status() if s.resident] == ["a", "c"]


def test_a_replacement_that_is_no_good_changes_nothing(engine: Engine, tmp_path: Path) -> None:
    cache = AdapterCache(engine)
    cache.register("task", write_adapter(tmp_path / "good", engine.config))
    loaded = cache.acquire("task")
    (tmp_path / "bad").mkdir()
    with pytest.raises(PomonaError):
        cache.replace("task", tmp_path / "bad")
    assert cache.acquire("task") is loaded


def test_unknown_and_double_names_are_refused(engine: Engine, tmp_path: Path) -> None:
    cache = AdapterCache(engine)
    cache.register("task", tmp_path)
    with pytest.raises(PomonaError, match="registered already"):
        cache.register("task", tmp_path)
    with pytest.raises(PomonaError, match="there: task"):
        cache.acquire("other")


def test_one_that_left_the_cache_and_is_still_in_use_is_not_read_again(
    engine: Engine, tmp_path: Path
) -> None:
    paths = [write_adapter(tmp_path / str(i), engine.config, seed=i, rank=4) for i in range(2)]
    cache = AdapterCache(engine, budget_bytes=load_adapter(engine, paths[0]).bytes)
    for name, path in zip("ab", paths, strict=True):
        cache.register(name, path)
    with engine.new_sequence(cache.acquire("a")) as sequence:
        cache.acquire("b")
        assert cache.in_memory("a") is sequence.adapter
        assert cache.acquire("a") is sequence.adapter
        cache.unload("a")
        assert cache.acquire("a") is sequence.adapter
    cache.unload("a")
    gc.collect()
    assert cache.in_memory("a") is None and cache.alive_bytes == 0
    assert [status.loads for status in cache.status()] == [1, 1]


def test_the_budget_can_be_a_limit_for_what_is_in_use(engine: Engine, tmp_path: Path) -> None:
    paths = [write_adapter(tmp_path / str(i), engine.config, seed=i, rank=4) for i in range(2)]
    size = load_adapter(engine, paths[0]).bytes
    cache = AdapterCache(engine, budget_bytes=size)
    for name, path in zip("ab", paths, strict=True):
        cache.register(name, path)
    with engine.new_sequence(cache.acquire("a", within_budget=True)):
        with pytest.raises(AdapterMemoryFullError, match="adapters in use leave no room"):
            cache.acquire("b", within_budget=True)
        assert cache.alive_bytes == size
        cache.acquire("b")
    gc.collect()
    assert cache.acquire("b", within_budget=True).name == "b"
    assert cache.alive_bytes == size


def test_an_adapter_is_read_once_when_many_threads_ask_for_it(engine: Engine, tmp_path: Path) -> None:
    cache = AdapterCache(engine)
    cache.register("task", write_adapter(tmp_path / "task", engine.config))
    with ThreadPoolExecutor(8) as pool:
        loaded = list(pool.map(lambda _: cache.acquire("task"), range(32)))
    assert len(set(map(id, loaded))) == 1
    (status,) = cache.status()
    assert (status.loads, status.hits) == (1, 32)


def test_reading_one_adapter_keeps_nobody_from_those_in_memory(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = AdapterCache(engine)
    for seed, name in enumerate(("ready", "slow", "next")):
        cache.register(name, write_adapter(tmp_path / name, engine.config, seed=seed))
    ready = cache.acquire("ready")
    reading, go_on = threading.Event(), threading.Event()

    def slow(*arguments: Any, **options: Any) -> LoadedAdapter:
        reading.set()
        assert go_on.wait(60)
        return load_adapter(*arguments, **options)

    monkeypatch.setattr("pomona.runtime.adapters.load_adapter", slow)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(cache.acquire, "slow")
        assert reading.wait(60)
        replaced = pool.submit(cache.replace, "ready", tmp_path / "next")
        assert cache.acquire("ready") is ready and cache.in_memory("slow") is None
        go_on.set()
        assert first.result(60).name == "slow"
        assert replaced.result(60) == 2 and cache.acquire("ready").version == 2


def test_a_check_reads_the_files_and_loads_nothing(engine: Engine, tmp_path: Path) -> None:
    cache = AdapterCache(engine)
    cache.register("good", write_adapter(tmp_path / "good", engine.config))
    cache.register("wrong", write_adapter(tmp_path / "wrong", engine.config, base="0123abcd"))
    cache.check("good")
    assert cache.alive_bytes == 0
    with pytest.raises(PomonaError, match="was made for base 0123abcd"):
        cache.check("wrong")
    with pytest.raises(PomonaError, match="is not known"):
        cache.check("other")


def without(name: str) -> Callable[[dict[str, Any]], None]:
    def change(tensors: dict[str, Any]) -> None:
        del tensors[next(key for key in tensors if key.endswith(name))]

    return change


def with_value(value: float) -> Callable[[dict[str, Any]], None]:
    def change(tensors: dict[str, Any]) -> None:
        next(iter(tensors.values()))[0, 0] = value

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without("q_proj.lora_A.weight"), "is missing"),
        (without("down_proj.lora_B.weight"), "is missing"),
        (
            lambda tensors: tensors.update(extra=np.zeros((2, 2), np.float32)),
            "extra. belongs to no target module",
        ),
        (with_value(np.nan), "not finite"),
        (with_value(np.inf), "not finite"),
        (
            lambda tensors: tensors.update({k: v[:, :-1].copy() for k, v in tensors.items()}),
            "this base needs",
        ),
        (
            lambda tensors: tensors.update({k: v.astype(np.int32) for k, v in tensors.items()}),
            "this base needs",
        ),
    ],
)
def test_damaged_tensors_are_named(
    engine: Engine, tmp_path: Path, change: Callable[[dict[str, Any]], None], words: str
) -> None:
    path = write_adapter(tmp_path / "a", engine.config)
    tensors = load_file(path / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, path / "adapter_model.safetensors")
    with pytest.raises(PomonaError, match=words) as caught:
        load_adapter(engine, path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"use_rslora": True},
        {"use_dora": True},
        {"bias": "all"},
        {"modules_to_save": ["lm_head"]},
        {"rank_pattern": {"q_proj": 4}},
        {"alpha_pattern": {"q_proj": 4}},
        {"init_lora_weights": "pissa"},
        {"fan_in_fan_out": True},
        {"peft_type": "LOHA"},
        {"something_new": 1},
        {"r": 0},
        {"r": "8"},
        {"lora_alpha": float("nan")},
        {"target_modules": ["lm_head"]},
        {"target_modules": ".*_proj"},
        {"layers_to_transform": [99]},
    ],
    ids=str,
)
def test_what_is_no_plain_lora_is_refused_by_name(
    engine: Engine, tmp_path: Path, options: dict[str, Any]
) -> None:
    path = write_adapter(tmp_path / "a", engine.config)
    config = json.loads((path / "adapter_config.json").read_text())
    (path / "adapter_config.json").write_text(json.dumps({**config, **options}))
    with pytest.raises(PomonaError) as caught:
        load_adapter(engine, path)
    message = str(caught.value)
    assert "\n" not in message and "adapter_config.json" in message
    assert next(iter(options)) in message or "NaN" in message or "lm_head" in message


def test_an_adapter_of_another_base_is_refused_with_both_fingerprints(engine: Engine, tmp_path: Path) -> None:
    right = write_adapter(tmp_path / "right", engine.config, base=engine.fingerprint)
    load_adapter(engine, right)
    wrong = write_adapter(tmp_path / "wrong", engine.config, base="0123abcd")
    with pytest.raises(PomonaError, match=f"0123abcd.*{engine.fingerprint}"):
        load_adapter(engine, wrong)


def test_what_peft_saves_is_what_is_read(engine: Engine, small_dir: Path, tmp_path: Path) -> None:
    """An adapter that PEFT itself wrote, with all the keys that its version writes."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(small_dir, dtype=torch.float32)
    model = get_peft_model(base, LoraConfig(r=4, lora_alpha=4, target_modules=ALL, task_type="CAUSAL_LM"))
    model.save_pretrained(str(tmp_path / "saved"))
    loaded = load_adapter(engine, tmp_path / "saved")
    ids = list(range(30))
    # A fresh LoRA has B = 0: the base model's logits, to the bit.
    np.testing.assert_array_equal(adapted_logits(engine, loaded, ids), engine.logits(ids))
