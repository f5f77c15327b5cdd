"""The guardrail at work: verdicts on inputs and outputs, from the engine that answers.

    guardrail = Guardrail.of(model)                      # the model's adapter "guardrail"
    guardrail.input("How do I bake bread?").harm         # 0.003
    waiting = guardrail.ask_input(text)                  # at once
    verdict = waiting.result()

`ask_input` and `ask_output` put requests of one token into the model's scheduler, so that they run in one
batch with the answers: the base's weights are read once for all, and the verdict is there about when the
answer's first token is. (Report, section 8.4: separate safety checks of input and output.)
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pomona.errors import PomonaError
from pomona.runtime.model import Model
from pomona.runtime.ticket import Request, Ticket
from pomona.safety.guardrail_head import SAFE, TASK, TOLD, GuardrailHead, Prompts, Side, verdict_probabilities

REMEMBERED = 4096  # verdicts on inputs: turns of a conversation come again with every new one


@dataclass(frozen=True)
class Verdict:
    """harm: the probability that the text is harmful; categories: how it is shared, the likeliest first."""

    side: Side
    harm: float
    categories: tuple[tuple[str, float], ...]

    def to_json(self) -> dict[str, Any]:
        return {"side": self.side, "harm": self.harm, "categories": dict(self.categories)}


class Waiting:
    """A verdict on its way. All methods from any thread."""

    def __init__(self, guardrail: Guardrail, side: Side, tickets: Sequence[Ticket], key: bytes) -> None:
        self._guardrail, self._side, self._tickets, self._key = guardrail, side, tickets, key

    @property
    def done(self) -> bool:
        return all(ticket.done for ticket in self._tickets)

    def result(self) -> Verdict:
        """PomonaError: it could not be judged; then the text must not pass either."""
        for ticket in self._tickets:
            ticket.result()
        return self._verdict()

    async def wait(self) -> Verdict:
        """result() under asyncio."""
        for ticket in self._tickets:
            await ticket.wait()
        return self._verdict()

    def cancel(self) -> None:
        for ticket in self._tickets:
            ticket.cancel()

    def _verdict(self) -> Verdict:
        for ticket in self._tickets:
            if not ticket.logprobs:
                raise PomonaError("guardrail: the check was cancelled; ask again")
        return self._guardrail._read(self._side, self._tickets, self._key)


class Known(Waiting):
    """A verdict that was given before."""

    def __init__(self, verdict: Verdict) -> None:
        self._known = verdict

    @property
    def done(self) -> bool:
        return True

    def result(self) -> Verdict:
        return self._known

    async def wait(self) -> Verdict:
        return self._known

    def cancel(self) -> None:
        pass


class Guardrail:
    """Judges texts by an adapter of `model`. Several threads may ask."""

    def __init__(self, model: Model, adapter: str, head: GuardrailHead) -> None:
        """adapter: its name in the model's adapter cache."""
        self.model, self.adapter, self.head = model, adapter, head
        self._tokens = head.tokens(model.tokenizer)
        self._prompts = Prompts(model.tokenizer, head.window)
        self._known: OrderedDict[bytes, Verdict] = OrderedDict()
        self._lock = threading.Lock()

    @classmethod
    def of(cls, model: Model, name: str = TASK) -> Guardrail:
        """name: of one of the model's adapters, or a directory. It is loaded now and stays in memory.
        PomonaError: no such adapter, or one that is no guardrail."""
        known = {status.name: status.directory for status in model.adapters.status()}
        directory = known.get(name, Path(name))
        if name not in known:
            if not directory.is_dir():
                there = ", ".join(sorted(known)) or "none"
                raise PomonaError(
                    f"guardrail {name}: the model has no such adapter (there: {there}), and it is no "
                    "directory; add one with `pomona adapters add`"
                )
            name = directory.name if directory.name not in known else f"{directory.name}-{len(known)}"
        head = GuardrailHead.of(directory)
        if name not in known:
            model.adapters.register(name, directory)
        model.adapters.pin(name)
        return cls(model, name, head)

    def ask_input(self, text: str) -> Waiting:
        """PomonaError at once where the scheduler takes no more (Overloaded): the text must not pass then."""
        key = self._key(text)
        with self._lock:
            if (known := self._known.get(key)) is not None:
                self._known.move_to_end(key)
                return Known(known)
        return self._ask("input", self._prompts.of_input(text), key)

    def ask_output(self, request: str, answer: str, *, judged: int = 0) -> Waiting:
        """judged: letters of the answer that were judged before; windows of them alone are left out."""
        return self._ask("output", self._prompts.of_output(request, answer, judged), b"")

    def forget(self) -> None:
        """Drops the verdicts that were given: every text is judged anew."""
        with self._lock:
            self._known.clear()

    def input(self, text: str) -> Verdict:
        return self.ask_input(text).result()

    def output(self, request: str, answer: str) -> Verdict:
        return self.ask_output(request, answer).result()

    def _ask(self, side: Side, prompts: Sequence[tuple[int, ...]], key: bytes) -> Waiting:
        tickets: list[Ticket] = []
        try:
            for ids in prompts:
                request = Request(prompt_ids=ids, max_new_tokens=1, adapter=self.adapter, logprobs=TOLD)
                tickets.append(self.model.scheduler.submit(request))
        except BaseException:
            for ticket in tickets:
                ticket.cancel()
            raise
        return Waiting(self, side, tickets, key)

    def _read(self, side: Side, tickets: Sequence[Ticket], key: bytes) -> Verdict:
        """The worst of the windows; an empty text is harmless."""
        verdict = Verdict(side, 0.0, ())
        for ticket in tickets:
            found = verdict_probabilities(ticket.logprobs[0], self._tokens)
            harm = 1.0 - found.pop(SAFE)
            if harm >= verdict.harm:
                ranked = sorted(found.items(), key=lambda item: -item[1])
                verdict = Verdict(side, harm, tuple(ranked))
        if key:
            with self._lock:
                self._known[key] = verdict
                while len(self._known) > REMEMBERED:
                    self._known.popitem(last=False)
        return verdict

    def _key(self, text: str) -> bytes:
        """Of a text under the adapter's present version; the text itself is not kept."""
        version = next((s.version for s in self.model.adapters.status() if s.name == self.adapter), 0)
        return hashlib.blake2b(f"{version}:{text}".encode("utf-8", "surrogatepass"), digest_size=16).digest()
