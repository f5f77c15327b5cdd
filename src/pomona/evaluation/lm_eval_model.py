"""Our runtime as a model of lm-evaluation-harness: every task of lm-eval on the model that ships.

    results = lm_eval.simple_evaluate(model=lm_eval_model(Model.load("smollm2-135m-4bit")), tasks=["piqa"])

Prompts, truncation and stop sequences are handled as by lm-eval's `hf` model, so that figures can be held
against it. Log-likelihoods share what their contexts have in common (continuations.py); generations are
batched by the scheduler.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from pomona.errors import PomonaError
from pomona.evaluation.answers import written
from pomona.evaluation.continuations import Continuations, fit
from pomona.runtime.model import Model
from pomona.runtime.sampling import Sampling
from pomona.runtime.scheduler import Request

if TYPE_CHECKING:
    from lm_eval.api.model import LM

Progress = Callable[[str, int, int], None]
TOGETHER = 64  # generations on their way at once
MAX_NEW_TOKENS = 256  # where a task says nothing; as lm-eval


def lm_eval_model(model: Model, *, adapter: str | None = None, progress: Progress | None = None) -> LM:
    """adapter: as a session's; "base" for none. PomonaError if lm-eval is not installed."""
    try:
        from lm_eval.api.model import TemplateLM
    except ImportError as error:
        raise PomonaError(
            "evaluation needs lm-evaluation-harness; install it: pip install 'pomona[eval]'"
        ) from error

    class PomonaLM(TemplateLM):  # type: ignore[misc]  # lm-eval has no types
        """lm-eval's interface over Answers."""

        def __init__(self) -> None:
            super().__init__()
            self.answers = Answers(model, adapter, progress)

        @property
        def eot_token_id(self) -> int:
            return self.answers.end

        @property
        def prefix_token_id(self) -> int:
            return self.answers.prefix

        @property
        def max_length(self) -> int:
            return self.answers.limit

        @property
        def tokenizer_name(self) -> str:
            return model.engine.directory.name

        def chat_template(self, chat_template: bool | str = False) -> str | None:
            template = model.tokenizer.chat_template
            return template.text if chat_template and template is not None else None

        def apply_chat_template(
            self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
        ) -> str:
            return self.answers.chat(chat_history, add_generation_prompt)

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
            return self.answers.encode(string)

        def _loglikelihood_tokens(
            self, requests: list[tuple[Any, list[int], list[int]]], **_: Any
        ) -> list[tuple[float, bool]]:
            return self.answers.likelihoods([(context, more) for _, context, more in requests])

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
            return [self.answers.rolling(request.args[0]) for request in requests]

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
            return self.answers.generate([request.args for request in requests])

    return PomonaLM()


class Answers:
    """What lm-eval asks for, in terms of our runtime."""

    def __init__(self, model: Model, adapter: str | None, progress: Progress | None) -> None:
        self._model = model
        self._adapter = model.adapter_for(adapter)
        self._progress = progress
        ends = model.tokenizer.eos_token_ids
        if not ends:
            raise PomonaError(f"{model.engine.directory}: the model has no end token; lm-eval needs one")
        self.end = ends[-1]  # the tokenizer's own, which transformers calls eos_token
        bos = model.tokenizer.bos_token_id
        self.prefix = self.end if bos is None else bos
        self.limit = min(model.engine.config.max_position_embeddings, model.engine.native.kv_tokens - 1)

    def encode(self, text: str) -> list[int]:
        """As the `hf` model: the tokenizer adds what it adds by itself, control tokens are read."""
        return self._model.tokenizer.encode(text, add_special_tokens=True)

    def chat(self, messages: Sequence[dict[str, str]], add_generation_prompt: bool) -> str:
        template = self._model.tokenizer.chat_template
        if template is None:
            raise PomonaError(f"{self._model.engine.directory}: the model has no chat template")
        if add_generation_prompt:
            return template.render(list(messages), add_generation_prompt=True)
        # The last message is to be continued: without the end that the template puts behind it.
        text = template.render(list(messages), add_generation_prompt=False)
        last = str(messages[-1]["content"]).strip()
        return text[: text.rindex(last) + len(last)]

    def likelihoods(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        """(log p, whether greedy decoding would write it) of each (context, continuation)."""
        name = self._adapter
        loaded = None if name is None else self._model.adapters.acquire(name)
        found = Continuations(self._model.engine, loaded).score(
            [fit(context, more, self.limit) for context, more in pairs], self._told("score answers")
        )
        return [(one.log_p, one.greedy) for one in found]

    def rolling(self, text: str) -> float:
        """log p of a whole text, in windows that do not overlap, as lm-eval cuts them."""
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

        windows = map(
            make_disjoint_window,
            get_rolling_token_windows(
                token_list=self.encode(text),
                prefix_token=self.prefix,
                max_seq_len=self.limit,
                context_len=1,
            ),
        )
        return sum(log_p for log_p, _ in self.likelihoods([(list(c), list(t)) for c, t in windows]))

    def generate(self, requests: Sequence[tuple[str, dict[str, Any]]]) -> list[str]:
        """The answer to each (prompt, generation options), cut before its first stop sequence. Not for a
        running event loop."""
        prepared = [self._read(prompt, options) for prompt, options in requests]
        return asyncio.run(self._generate(prepared))

    async def _generate(self, prepared: Sequence[tuple[Request, list[str]]]) -> list[str]:
        told = self._told("write answers")
        gate = asyncio.Semaphore(TOGETHER)
        done = 0

        async def one(request: Request, stops: list[str]) -> str:
            nonlocal done
            async with gate:
                text = await written(self._model, request, stops)
            done += 1
            if told is not None:
                told(done, len(prepared))
            return text

        return await asyncio.gather(*(one(request, stops) for request, stops in prepared))

    def _read(self, prompt: str, options: dict[str, Any]) -> tuple[Request, list[str]]:
        from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs

        known: dict[str, Any] = dict(normalize_gen_kwargs(dict(options), MAX_NEW_TOKENS))
        stops = [stop for stop in handle_stop_sequences(known.pop("until", None), eos=None) if stop]
        new_tokens = int(known.pop("max_gen_toks"))
        sampled = bool(known.pop("do_sample", False))
        sampling = Sampling(
            temperature=float(known.pop("temperature", 0.0)) if sampled else 0.0,
            top_k=int(known.pop("top_k", 0)),
            top_p=float(known.pop("top_p", 1.0)),
            seed=int(known.pop("seed", 0)),
        )
        if known:
            raise PomonaError(
                f"generation options {', '.join(sorted(known))}: are not supported; leave them out"
            )
        if new_tokens >= self.limit:
            raise PomonaError(f"max_gen_toks = {new_tokens}: does not fit the context of {self.limit:,}")
        request = Request(
            prompt_ids=tuple(self.encode(prompt)[-(self.limit - new_tokens) :]),
            sampling=sampling,
            max_new_tokens=new_tokens,
            stop_ids=frozenset(self._model.tokenizer.eos_token_ids),
            adapter=self._adapter,
            lookup=True,
        )
        return request, stops

    def _told(self, what: str) -> Callable[[int, int], None] | None:
        if (progress := self._progress) is None:
            return None
        return lambda done, total: progress(what, done, total)
