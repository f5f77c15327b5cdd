"""Roll-outs on vLLM, for machines with a GPU: the interface of rollouts.py, nothing more.

vLLM is no dependency of pomona; it is imported when a VllmRollOuts is made. Its responses are those of the
policy, but unlike ours they may depend on the batch, so a resumed run need not end with the same bits.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pomona.errors import PomonaError
from pomona.models.tokenizer import Tokenizer
from pomona.posttraining.rollouts import (
    Job,
    OnResponse,
    Rendering,
    Response,
    RollOutSampling,
    as_jobs,
    cut_at_end,
    sample_seed,
)


class VllmRollOuts(Rendering):
    """base: a Hugging Face directory in 16 bit. max_rank: of the adapters that will come."""

    def __init__(self, base: Path | str, *, max_rank: int = 64, **options: Any) -> None:
        """options: of vllm.LLM, as they are."""
        if importlib.util.find_spec("vllm") is None:
            raise PomonaError(
                "roll-outs on vLLM: it is not installed; install vllm, or take the local engine"
            )
        import vllm  # type: ignore[import-not-found,unused-ignore]

        super().__init__(Tokenizer.from_directory(Path(base)))
        self._vllm = vllm
        self._llm = vllm.LLM(
            model=str(base), enable_lora=True, max_lora_rank=max_rank, enable_prefix_caching=True, **options
        )
        self._adapters: dict[str, tuple[int, Path]] = {}  # version, directory
        self._numbers = 0  # vLLM caches adapters by number: every version needs its own

    def replace(self, adapter: str, directory: Path | str) -> int:
        if not Path(directory).is_dir():
            raise PomonaError(f"{directory}: no such adapter directory; give a PEFT directory")
        self._numbers += 1
        self._adapters[adapter] = (self._numbers, Path(directory))
        return self._numbers

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        adapter: str | None,
        n: int,
        sampling: RollOutSampling,
    ) -> list[list[Response]]:
        return self.sample_mixed(as_jobs(prompts, adapter, n), sampling)

    def sample_mixed(
        self, jobs: Sequence[Job], sampling: RollOutSampling, on_response: OnResponse | None = None
    ) -> list[list[Response]]:
        from vllm.lora.request import LoRARequest  # type: ignore[import-not-found,unused-ignore]

        prompts, settings, loras, places = [], [], [], []
        for number, job in enumerate(jobs):
            if job.adapter is not None and job.adapter not in self._adapters:
                raise PomonaError(f"adapter {job.adapter}: is not known; replace() it first")
            version, directory = self._adapters[job.adapter] if job.adapter else (None, None)
            for place in range(job.first, job.first + job.n):
                prompts.append({"prompt_token_ids": list(job.prompt_ids)})
                settings.append(
                    self._vllm.SamplingParams(
                        temperature=sampling.temperature,
                        max_tokens=sampling.max_new_tokens,
                        seed=sample_seed(sampling.seed, job.adapter, job.key, place) >> 1,
                        stop_token_ids=list(self.end_ids),
                        detokenize=False,
                    )
                )
                loras.append(
                    None
                    if version is None
                    else LoRARequest(f"{job.adapter}-{version}", version, str(directory))
                )
                places.append((number, place, version))
        found: list[list[Response]] = [[] for _ in jobs]
        outputs = self._llm.generate(prompts, settings, lora_request=loras, use_tqdm=False)
        for (number, place, version), output in zip(places, outputs, strict=True):
            ids, finished = cut_at_end(output.outputs[0].token_ids, self.end_ids, False)
            response = Response(ids, finished, version)
            found[number].append(response)
            if on_response is not None:
                on_response(number, place, response)
        return found
