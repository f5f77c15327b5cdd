"""The guardrail on the server: a choice's words are held back until they are judged.

The input is judged in the step that reads the prompt; nothing is shown before its verdict. The answer is
judged segment by segment while the next one is being written, and a segment is shown when it has passed. What
does not pass ends the choice with the finish_reason `content_filter` and a sentence that says why.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pomona.runtime.ticket import Overloaded
from pomona.safety.guardrail import Guardrail, Waiting
from pomona.safety.guardrail_policy import GuardrailPolicy, Refusal
from pomona.safety.patterns import PhraseFilter
from pomona.safety.screening import Exchange, Shield

if TYPE_CHECKING:
    from pomona.runtime.model import Model

FILTERED = "content_filter"  # OpenAI's finish_reason


def make_shield(model: Model, name: str, policy: Path | None) -> Shield:
    """PomonaError: no such guardrail, a policy that is wrong."""
    rules = GuardrailPolicy() if policy is None else GuardrailPolicy.read(policy)
    shield = Shield(Guardrail.of(model, name), rules)
    shield.begin("warm-up", ["Hello."]).input_refusal()  # the first verdict of a process takes longer
    return shield


class AnswerGuard:
    """One choice. `refusal`: why it ended, if it was refused."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._phrases = PhraseFilter(exchange.rules.lists)
        self.segment = exchange.shield.policy.segment  # tokens
        self.text = ""  # that has passed the phrases
        self.refusal: Refusal | None = None
        self._admitted = False  # the input has passed
        self._shown = self._cleared = 0  # letters
        self._unjudged = 0  # tokens since the last check
        self._waiting: Waiting | None = None
        self._asked = 0  # letters that the check on its way covers

    async def push(self, words: str, tokens: int) -> str:
        """Words of so many new tokens -> those that can be shown now."""
        if not await self._admit():
            return ""
        self._take(self._phrases.push(words))
        self._unjudged += tokens
        if self.refusal is not None:
            return ""
        if not self._exchange.judges_answers:
            return self._show(len(self.text))
        if self._waiting is None and self._unjudged >= self.segment and len(self.text) > self._cleared:
            with contextlib.suppress(Overloaded):  # there is time until the answer ends
                self._ask()
        if self._waiting is not None and self._waiting.done:
            await self._settle()
        return self._show(self._cleared)

    async def may_end_early(self) -> bool:
        """Once the input is judged: whether it is refused, or the answer is judged while it is written."""
        return not await self._admit() or self._exchange.judges_answers

    async def end(self, words: str, calls: str = "") -> str:
        """The last words of an answer, and its calls as text: what can be shown of the rest."""
        if not await self._admit():
            return self._told()
        self._take(self._phrases.push(words) + self._phrases.flush())
        if self.refusal is None and calls:
            denied = self._exchange.shield.policy.denied(self._exchange.feature, "output", calls)
            self.refusal = denied
        if self.refusal is None and self._exchange.judges_answers:
            await self._settle()
            if self.refusal is None and (len(self.text) > self._cleared or calls):
                self._ask(calls)
                await self._settle()
        if self.refusal is not None:
            return self._told()
        return self._show(len(self.text))

    async def _admit(self) -> bool:
        if not self._admitted and self.refusal is None:
            self.refusal = await self._exchange.ainput_refusal()
            self._admitted = self.refusal is None
        return self.refusal is None

    def _take(self, text: str) -> None:
        self.text += text
        if (found := self._phrases.found) is not None and self.refusal is None:
            self.refusal = self._exchange.shield.policy.matched(self._exchange.feature, "output", found)

    def _ask(self, calls: str = "") -> None:
        judged = f"{self.text}\n{calls}" if calls else self.text
        self._waiting = self._exchange.ask_answer(judged, judged=self._cleared)
        self._asked, self._unjudged = len(self.text), 0

    async def _settle(self) -> None:
        """The verdict that is on its way, if there is one."""
        if self._waiting is not None:
            self.refusal = self._exchange.refused(await self._waiting.wait())
            self._waiting = None
            if self.refusal is None:
                self._cleared = self._asked

    def _show(self, end: int) -> str:
        start, self._shown = self._shown, max(self._shown, end)
        return self.text[start : self._shown]

    def _told(self) -> str:
        """The refusal, after what was shown before."""
        assert self.refusal is not None
        self.text = self.text[: self._shown]
        said = f"\n\n{self.refusal.message}" if self.text else self.refusal.message
        self.text += said
        return said

    def cancel(self) -> None:
        self._exchange.cancel()
        if self._waiting is not None:
            self._waiting.cancel()


def guard_fields(refusals: list[Refusal]) -> dict[str, Any]:
    """What a reply tells of refusals; nothing where there are none. The phrase stays the policy's secret."""
    if not refusals:
        return {}
    told = refusals[0].to_json()
    del told["phrase"]
    return {"guardrail": told}
