"""From a request to tickets of the scheduler, and from their tokens to words, calls and an ending.

    job = await prepared(...)            # prompt, guide and sampling of one request
    choices = await submitted(state, job)
    while new := await choice.ticket.more(choice.read):
        words = choice.push(new)         # what can be shown
    ending = choice.end()

A token costs a list append, a table look-up and, where a stop text or a tool may begin, a search.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pomona.errors import PomonaError
from pomona.runtime.guided import Guide
from pomona.runtime.sampling import Sampling
from pomona.runtime.ticket import Completion, Request, Ticket, TokenLogprobs
from pomona.runtime.tools import Tool
from pomona.runtime.transcript import ToolCall
from pomona.safety.guardrail_policy import Refusal
from pomona.safety.screening import CHAT
from pomona.serving.chat_request import SamplingFields
from pomona.serving.errors import ApiError, internal, log, refused, unavailable
from pomona.serving.guarding import FILTERED, AnswerGuard
from pomona.serving.state import ServerState
from pomona.serving.stop_texts import StopTexts

INLINE_CHARACTERS = 4096  # longer prompts are tokenised in a thread, beside the event loop
SEEDS = 1 << 64


@dataclass(frozen=True)
class Job:
    """One prompt and how to answer it, `choices` times."""

    model_id: str
    adapter: str | None
    prompt_ids: tuple[int, ...]
    sampling: Sampling
    max_new_tokens: int
    deadline_seconds: float
    choices: int = 1
    stop: tuple[str, ...] = ()
    guide: Guide | None = None
    tools: tuple[Tool, ...] = ()
    tool_choice: str = "none"
    calls_before: int = 0
    include_usage: bool = False  # in a stream: its last chunk tells the counts
    logprobs: int | None = None  # of each token, with those of so many likeliest ones
    said: tuple[str, ...] = ()  # the user's words, for the guardrail


@dataclass(frozen=True)
class Ending:
    """How a choice ended. `words`: what of its text was still held back."""

    words: str
    calls: tuple[ToolCall, ...]
    finish_reason: str  # OpenAI's
    tokens: int
    completion: Completion


def sampling_of(request: SamplingFields, state: ServerState) -> Sampling:
    """Greedy where no temperature is given (docs/openai.md says why). ApiError for a bias of no token."""
    vocabulary = state.model.engine.config.vocab_size
    bias = tuple((int(token), float(value)) for token, value in (request.logit_bias or {}).items())
    if wrong := [token for token, _ in bias if token >= vocabulary]:
        raise ApiError(
            400,
            f"'logit_bias': token {wrong[0]} is outside the vocabulary of {vocabulary:,}.",
            param="logit_bias",
        )
    settings = state.settings
    temperature = settings.default_temperature if request.temperature is None else request.temperature
    seed = secrets.randbits(64) if request.seed is None else request.seed % SEEDS
    return Sampling(
        temperature=float(temperature),
        top_k=request.top_k or 0,
        top_p=1.0 if request.top_p is None else float(request.top_p),
        min_p=float(request.min_p or 0.0),
        repetition_penalty=float(request.repetition_penalty or 1.0),
        seed=seed if temperature > 0 else 0,
        presence_penalty=float(request.presence_penalty or 0.0),
        frequency_penalty=float(request.frequency_penalty or 0.0),
        logit_bias=bias,
    )


def room_for(prompt_tokens: int, asked: int | None, state: ServerState, *, param: str) -> int:
    """How many tokens the answer may have. ApiError when the prompt, or both together, do not fit."""
    if prompt_tokens == 0:
        raise ApiError(400, "The prompt is empty.", param=param)
    limit = state.context_tokens
    if prompt_tokens > state.prompt_limit:
        raise ApiError(
            400,
            f"The prompt has {prompt_tokens:,} tokens; this server takes at most {state.prompt_limit:,}.",
            param=param,
            code="context_length_exceeded",
        )
    if asked is not None and prompt_tokens + asked > limit:
        raise ApiError(
            400,
            f"The context holds {limit:,} tokens; the prompt has {prompt_tokens:,} and the answer may have "
            f"{asked:,}. Shorten the prompt, or ask for fewer.",
            param=param,
            code="context_length_exceeded",
        )
    return asked or min(state.settings.default_max_tokens, limit - prompt_tokens)


def deadline_of(request: SamplingFields, state: ServerState) -> float:
    longest = state.settings.deadline_seconds
    return min(request.deadline_seconds or longest, longest)


def check_choices(request: SamplingFields, state: ServerState) -> int:
    wanted = request.n or 1
    if wanted > state.settings.max_choices:
        raise ApiError(400, f"'n': at most {state.settings.max_choices} choices are made.", param="n")
    return wanted


class Choice:
    """One answer on its way: tokens in, words out."""

    def __init__(self, state: ServerState, job: Job, ticket: Ticket, index: int) -> None:
        dialect = state.model.dialect if job.tools else None
        self.index, self.ticket = index, ticket
        self.guard: AnswerGuard | None = None
        self.read = 0  # tokens so far
        self.told = 0  # tokens whose log probabilities were sent, and their characters:
        self.told_characters = 0
        self.parts: list[str] = []  # the words so far
        self._job, self._dialect = job, dialect
        # A control token may begin a call.
        self._decoder = state.model.tokenizer.stream(skip_special_tokens=not job.tools)
        self._stop = StopTexts(job.stop) if job.stop else None
        self._splitter = None if dialect is None else dialect.splitter(job.tools, job.tool_choice)

    @property
    def text(self) -> str:
        return "".join(self.parts)

    @property
    def stopped(self) -> bool:
        """A stop text has appeared."""
        return self._stop is not None and self._stop.found

    @property
    def refused(self) -> Refusal | None:
        """Why the guardrail ended it."""
        return None if self.guard is None else self.guard.refusal

    @property
    def over(self) -> bool:
        """Nothing that the ticket still brings will be shown."""
        return self.stopped or self.refused is not None

    @property
    def piece(self) -> int:
        """Tokens after which there is something to decide: a guarded answer is judged by segments."""
        return 1 if self._stop is not None or self.guard is None else self.guard.segment

    async def may_end_early(self) -> bool:
        """Whether it may be over before its ticket is; a guarded one waits for the verdict on its input."""
        if self._stop is not None or self.guard is None:
            return self._stop is not None
        try:
            return await self.guard.may_end_early()
        except PomonaError as error:
            raise refused(error) from error

    def push(self, tokens: Sequence[int]) -> str:
        """Words that can be shown now, perhaps none."""
        self.read += len(tokens)
        push = self._decoder.push
        piece = push(tokens[0]) if len(tokens) == 1 else "".join([push(token) for token in tokens])
        return self._shown(piece) if piece else ""

    async def show(self, tokens: Sequence[int]) -> str:
        """push(), and of its words those that the guardrail lets pass now."""
        words = self.push(tokens)
        if self.guard is None:
            return words
        try:
            return await self.guard.push(words, len(tokens))
        except PomonaError as error:
            raise refused(error) from error

    async def finish(self) -> Ending:
        """end(), after the guardrail's last word. ApiError, too, where the answer could not be judged."""
        if self.guard is None or (self.refused is None and self.ticket.error is not None):
            return self.end()
        if self.refused is not None:
            words, ending = "", Ending("", (), FILTERED, self.read, self._completion())
        else:
            ending = self.end()
            words = ending.words
        calls = "\n".join(json.dumps(call.arguments, ensure_ascii=False) for call in ending.calls)
        try:
            shown = await self.guard.end(words, calls)
        except PomonaError as error:
            raise refused(error) from error
        self.parts = [self.guard.text]
        if self.refused is not None:
            return replace(ending, words=shown, calls=(), finish_reason=FILTERED)
        return replace(ending, words=shown)

    def untold(self) -> Sequence[tuple[int, TokenLogprobs]]:
        """Tokens and their log probabilities that were not sent yet; each once."""
        start, self.told = self.told, self.read
        if self._job.logprobs is None:
            return ()
        ids = self.ticket.token_ids
        return list(zip(ids[start : self.read], self.ticket.logprobs[start : self.read], strict=True))

    def end(self) -> Ending:
        """After the last token. ApiError when there is no answer."""
        completion = self._completion()
        if completion.finish_reason == "cancelled" and not self.over:
            raise unavailable("the request was cancelled, as the server is shutting down")
        if completion.finish_reason == "deadline":
            raise ApiError(
                504,
                f"the answer was not finished within {self._job.deadline_seconds:g} seconds; ask for less",
                type="server_error",
                code="deadline_exceeded",
                headers={"X-Should-Retry": "false"},  # the official clients would start it all again
            )
        words = "" if self.stopped else self._shown(self._decoder.flush())
        reason = "length" if completion.finish_reason == "length" else "stop"
        calls: tuple[ToolCall, ...] = ()
        splitter = self._splitter
        if splitter is not None and not self.stopped:
            if splitter.held:
                assert self._dialect is not None
                read = self._dialect.read(splitter.held, self._job.tools, self._job.calls_before)
                if read is None:  # cut off, or an answer in JSON where calls are JSON
                    words += self._stopping(splitter.release())
                else:
                    calls, reason = read, "tool_calls"
            words += self._stopping(splitter.finish())
        if self._stop is not None and not self.stopped:
            rest = self._stop.flush()
            self.parts.append(rest)
            words += rest
        return Ending(words, calls, reason, self.read, completion)

    def _completion(self) -> Completion:
        error, completion = self.ticket.error, self.ticket.completion
        assert completion is not None
        if isinstance(error, PomonaError):
            raise refused(error) from error
        if error is not None:
            log.error("an answer failed", exc_info=error)
            raise internal() from error
        return completion

    def _shown(self, piece: str) -> str:
        if self._splitter is not None:
            piece = self._splitter.push(piece)
        return self._stopping(piece)

    def _stopping(self, piece: str) -> str:
        words = piece if self._stop is None else self._stop.push(piece)
        if words:
            self.parts.append(words)
        return words


async def submitted(state: ServerState, *jobs: Job) -> list[Choice]:
    """The tickets of all choices in the queue: all of them, or none and ApiError."""
    state.check_open()
    choices: list[Choice] = []
    try:
        for job in jobs:
            if job.guide is None:
                with state.model.scheduler.together():  # prompts, and the checks of them
                    choices += _submit(state, job, len(choices))
                    _guard(state, job, choices[-job.choices :])
            else:  # compiling a guide may take its time
                choices += await asyncio.to_thread(_submit, state, job, len(choices))
                _guard(state, job, choices[-job.choices :])
    except BaseException:
        cancel_all(choices)
        raise
    return choices


def cancel_all(choices: Sequence[Choice]) -> None:
    """What is not finished ends; the others are left as they are."""
    for choice in choices:
        choice.ticket.cancel()
        if choice.guard is not None:
            choice.guard.cancel()


def _guard(state: ServerState, job: Job, choices: Sequence[Choice]) -> None:
    """Puts the input's checks into the queue, right behind the prompt: they run in the same step."""
    if state.shield is None:
        return
    if job.logprobs is not None:
        raise ApiError(400, "'logprobs' would tell what the guardrail holds back.", param="logprobs")
    try:
        exchange = state.shield.begin(job.adapter or CHAT, job.said)
    except PomonaError as error:
        raise refused(error) from error
    for choice in choices:
        choice.guard = AnswerGuard(exchange)


def _submit(state: ServerState, job: Job, number: int) -> list[Choice]:
    request = Request(
        prompt_ids=job.prompt_ids,
        sampling=job.sampling,
        max_new_tokens=job.max_new_tokens,
        stop_ids=frozenset(state.model.tokenizer.eos_token_ids),
        adapter=job.adapter,
        guide=job.guide,
        deadline_seconds=job.deadline_seconds,
        lookup=True,
        logprobs=job.logprobs,
    )
    choices: list[Choice] = []
    try:
        for index in range(job.choices):
            seed = (job.sampling.seed + index) % SEEDS
            one = replace(request, sampling=replace(job.sampling, seed=seed)) if index else request
            ticket = state.model.scheduler.submit(one)
            choices.append(Choice(state, job, ticket, number + index))
    except BaseException as error:
        cancel_all(choices)
        if isinstance(error, PomonaError):
            raise refused(error) from error
        raise
    return choices


async def read_to_end(choice: Choice) -> Ending:
    """All of an answer for which nobody waits token by token."""
    if await choice.may_end_early():
        while not choice.over and (new := await choice.ticket.more(choice.read, choice.piece)):
            await choice.show(new)
        if choice.over:
            choice.ticket.cancel()
    await choice.ticket.ended()
    if not choice.over and (completion := choice.ticket.completion) is not None:
        await choice.show(completion.token_ids[choice.read :])
    return await choice.finish()
