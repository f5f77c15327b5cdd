"""Roll-outs: the same responses alone and in any batch, seeds, end tokens, versions, and vLLM behind the same
interface."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from mdloo_samples import tiny_model

from pomona.errors import PomonaError
from pomona.models.palettized import describe
from pomona.posttraining.rollout_store import read_responses, sample_kept
from pomona.posttraining.rollouts import (
    Job,
    LocalRollOuts,
    Response,
    RollOutSampling,
    cut_at_end,
    missing,
    sample_seed,
)
from pomona.runtime.adapter_writer import write_adapter
from pomona.runtime.generate import generate
from pomona.runtime.sampling import Sampling

SAMPLING = RollOutSampling(max_new_tokens=12, temperature=1.0, seed=7)
PROMPTS = [[65 + n, 66, 67, 68] * (4 + n) for n in range(3)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("plain") / "tiny")


@pytest.fixture(scope="module")
def adapters(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    from pomona.models.config import ModelConfig

    found = {}
    for number, name in enumerate(("one", "two")):
        rng = np.random.default_rng(number)
        pairs = {
            module: (
                rng.standard_normal((4, columns)).astype(np.float32) * 0.1,
                rng.standard_normal((rows, 4)).astype(np.float32) * 0.1,
            )
            for module, (rows, columns) in ModelConfig.from_directory(base).linear_shapes().items()
        }
        target = tmp_path_factory.mktemp("adapters") / name
        record = {"version": 1, "base_fingerprint": describe(base).fingerprint}
        found[name] = write_adapter(target, pairs, scale=2.0, record=record)
    return found


@pytest.fixture
def rollouts(base: Path, adapters: dict[str, Path]) -> Any:
    with LocalRollOuts(base, threads=1, max_running=8) as found:
        for name, directory in adapters.items():
            found.replace(name, directory)
        yield found


def test_a_mixed_batch_gives_what_single_sequences_give(rollouts: LocalRollOuts) -> None:
    jobs = [
        Job(tuple(ids), adapter, 4, key)
        for key, ids in enumerate(PROMPTS)
        for adapter in ("one", "two", None)
    ]
    together = rollouts.sample_mixed(jobs, SAMPLING)
    for job, responses in zip(jobs, together, strict=True):
        loaded = None if job.adapter is None else rollouts.adapters.acquire(job.adapter)
        for place, response in enumerate(responses):
            seed = sample_seed(SAMPLING.seed, job.adapter, job.key, place)
            with rollouts.engine.new_sequence(loaded) as sequence:
                alone = generate(
                    rollouts.engine,
                    job.prompt_ids,
                    sampling=Sampling(temperature=1.0, seed=seed),
                    max_new_tokens=SAMPLING.max_new_tokens,
                    stop_ids=(),
                    sequence=sequence,
                    lookup=False,
                )
                assert cut_at_end(list(alone), rollouts.end_ids, False)[0] == response.token_ids
    assert len({response.token_ids for group in together for response in group}) > 30  # they do differ


def test_the_samples_of_a_prompt_share_its_prefix(rollouts: LocalRollOuts) -> None:
    """All but the first of each, less those that began in the first steps."""
    prompts = [[65 + number, *range(30, 171)] for number in range(3)]
    rollouts.sample(prompts, "one", 8, SAMPLING)
    lane = rollouts.scheduler.stats().lanes["one"]
    assert lane.reused_tokens >= 0.7 * 3 * 7 * 141


def test_the_last_page_of_a_prompt_is_shared_too(rollouts: LocalRollOuts) -> None:
    prompt = list(range(30, 45))
    first = rollouts.sample([prompt], "one", 1, SAMPLING)
    assert rollouts.sample([prompt], "one", 1, SAMPLING) == first
    assert rollouts.scheduler.stats().lanes["one"].reused_tokens == 14


def test_the_newest_version_answers_after_a_replacement(
    rollouts: LocalRollOuts, adapters: dict[str, Path]
) -> None:
    first = rollouts.sample(PROMPTS, "one", 2, SAMPLING)
    assert rollouts.replace("one", adapters["two"]) == 2
    second = rollouts.sample(PROMPTS, "one", 2, SAMPLING)
    assert second != first and {one.adapter_version for group in second for one in group} == {2}
    rollouts.replace("one", adapters["one"])
    third = rollouts.sample(PROMPTS, "one", 2, SAMPLING)
    assert [[one.token_ids for one in group] for group in third] == [
        [one.token_ids for one in group] for group in first
    ]


def test_an_end_token_is_part_of_the_response(rollouts: LocalRollOuts) -> None:
    """The tiny model is random: among many responses some end."""
    sampling = RollOutSampling(max_new_tokens=40, seed=1)
    ends = 0
    for (response,) in rollouts.sample([[65, 66, number] for number in range(120)], None, 1, sampling):
        inner = set(response.token_ids[:-1])
        assert not inner & set(rollouts.end_ids)
        assert response.finished == (response.token_ids[-1] in rollouts.end_ids)
        assert response.finished or len(response.token_ids) == 40
        assert "<|im_end|>" not in rollouts.text(response)
        ends += response.finished
    assert 0 < ends < 120


def test_a_response_is_cut_behind_the_first_of_several_end_tokens() -> None:
    assert cut_at_end([1, 2, 9, 3], (8, 9), False) == ((1, 2, 9), True)
    assert cut_at_end([1, 2], (8, 9), True) == ((1, 2, 8), True)
    assert cut_at_end([1, 9], (8, 9), True) == ((1, 9), True)
    assert cut_at_end([1, 2], (8, 9), False) == ((1, 2), False)


def test_what_is_there_is_not_sampled_again(rollouts: LocalRollOuts, tmp_path: Path) -> None:
    jobs = [Job(tuple(ids), "one", 3, key) for key, ids in enumerate(PROMPTS)]
    path = tmp_path / "responses"
    whole = sample_kept(rollouts, jobs, SAMPLING, path)
    lines = path.read_text().splitlines(keepends=True)
    assert len(lines) == 9 and len(read_responses(path)) == 9
    path.write_text("".join(lines[:4]) + lines[4][:9])
    before = rollouts.scheduler.stats().submitted
    counts: list[tuple[int, int]] = []
    again = sample_kept(rollouts, jobs, SAMPLING, path, on_count=lambda *count: counts.append(count))
    assert again == whole and rollouts.scheduler.stats().submitted - before <= 6
    assert counts[-1] == (9, 9)
    with pytest.raises(PomonaError, match="other prompts"):
        sample_kept(rollouts, jobs[:1], SAMPLING, path)


def test_after_a_gap_responses_are_sampled_again() -> None:
    have = {(0, 0): Response((1,), False), (0, 2): Response((2,), False)}
    assert missing([Job((1,), None, 4, 0), Job((2,), None, 1, 1)], have) == [
        Job((1,), None, 3, 0, first=1),
        Job((2,), None, 1, 1),
    ]


def test_unknown_adapters_and_hopeless_prompts_are_refused(rollouts: LocalRollOuts, tmp_path: Path) -> None:
    with pytest.raises(PomonaError, match="not known"):
        rollouts.sample(PROMPTS, "nobody", 1, SAMPLING)
    with pytest.raises(PomonaError, match="shorten"):
        rollouts.sample([[65] * 5000], None, 1, SAMPLING)
    with pytest.raises(PomonaError):
        rollouts.replace("three", tmp_path / "nothing")
    with pytest.raises(PomonaError, match="not known"):
        rollouts.sample(PROMPTS, "three", 1, SAMPLING)  # it did not stay half known


# --- vLLM, whose place a fake takes


class FakeLlm:
    calls: list[Any]

    def __init__(self, **options: Any) -> None:
        self.options, self.calls = options, []

    def generate(self, prompts: Any, settings: Any, lora_request: Any, use_tqdm: bool) -> list[Any]:
        self.calls.append((prompts, settings, lora_request))
        return [
            SimpleNamespace(outputs=[SimpleNamespace(token_ids=[*prompt["prompt_token_ids"], 257, 1])])
            for prompt in prompts
        ]


def test_vllm_stands_behind_the_same_interface(
    base: Path, adapters: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    vllm, lora, request = ModuleType("vllm"), ModuleType("vllm.lora"), ModuleType("vllm.lora.request")
    vllm.__spec__ = SimpleNamespace()  # type: ignore[assignment]
    vllm.LLM = FakeLlm  # type: ignore[attr-defined]
    vllm.SamplingParams = lambda **given: SimpleNamespace(**given)  # type: ignore[attr-defined]
    request.LoRARequest = lambda *given: given  # type: ignore[attr-defined]
    for module in (vllm, lora, request):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    from pomona.posttraining.rollouts_vllm import VllmRollOuts

    with VllmRollOuts(base) as rollouts:
        assert rollouts.replace("one", adapters["one"]) == 1 and rollouts.replace("one", adapters["two"]) == 2
        jobs = [Job((65, 66), "one", 2, 0), Job((67,), None, 1, 1)]
        found = rollouts.sample_mixed(jobs, SAMPLING)
        assert [[one.token_ids for one in group] for group in found] == [[(65, 66, 257)] * 2, [(67, 257)]]
        assert found[0][0] == Response((65, 66, 257), True, 2)
        prompts, settings, loras = rollouts._llm.calls[0]
        assert [prompt["prompt_token_ids"] for prompt in prompts] == [[65, 66], [65, 66], [67]]
        assert loras == [("one-2", 2, str(adapters["two"]))] * 2 + [None]
        assert len({one.seed for one in settings}) == 3 and settings[0].max_tokens == 12
        assert settings[0].temperature == 1.0 and settings[0].stop_token_ids == [257]
        assert rollouts.render([{"role": "user", "content": "hi"}])[:1] == [256]
        with pytest.raises(PomonaError, match="not known"):
            rollouts.sample([[65]], "two", 1, SAMPLING)


def test_without_vllm_the_error_says_so(base: Path) -> None:
    from pomona.posttraining.rollouts_vllm import VllmRollOuts

    with pytest.raises(PomonaError, match="not installed"):
        VllmRollOuts(base)
