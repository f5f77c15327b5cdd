"""An exchange under guard: the request and the answer of one turn, by a guardrail and a policy together.

    shield = Shield(Guardrail.of(model), GuardrailPolicy.read("policy.yaml"))
    exchange = shield.begin("chat", ["How do I bake bread?"])    # at once; the verdict is on its way
    answer = session.respond(...)                                # meanwhile, in the same batch
    exchange.check(answer.text)                                  # Blocked says why

The server and the features both use it. Whatever cannot be judged (the queue is full, the guardrail is gone)
is an error, never a pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from pomona.runtime.model import Model
from pomona.safety.guardrail import Guardrail, Verdict, Waiting
from pomona.safety.guardrail_policy import Blocked, GuardrailPolicy, Refusal

CHAT = "chat"  # the feature of a request that is no task
MOST_TURNS = 32  # judged one by one; those before are judged as one text, so that no chat fills the queue


class Shield:
    """A guardrail and what is done with its verdicts."""

    def __init__(self, guardrail: Guardrail, policy: GuardrailPolicy | None = None) -> None:
        """PomonaError: a list of phrases that cannot be read."""
        self.guardrail, self.policy = guardrail, policy or GuardrailPolicy()
        self.policy.check_lists()

    def begin(self, feature: str, said: Sequence[str]) -> Exchange:
        """said: what the user brings, turn by turn; each turn is judged by itself."""
        exchange = Exchange(self, feature, said)
        exchange.ask()
        return exchange

    def check(self, feature: str, said: str, answer: str = "") -> Refusal | None:
        """An exchange that is over. answer "": the request alone."""
        exchange = self.begin(feature, [said])
        return exchange.input_refusal() or (exchange.answer_refusal(answer) if answer else None)


class Exchange:
    """One turn. The methods that begin with `a` are for asyncio."""

    def __init__(self, shield: Shield, feature: str, said: Sequence[str]) -> None:
        early, late = said[:-MOST_TURNS], said[-MOST_TURNS:]
        self.shield, self.feature = shield, feature
        self.said = ("\n\n".join(early), *late) if early else tuple(late)
        self.rules = shield.policy.of(feature)
        self._waiting: list[Waiting] = []
        self._denied: Refusal | None = None
        self._worst: Verdict | None = None  # of the input, when it is judged

    def ask(self) -> None:
        """Phrases are looked for now; the model is asked, and nobody waits."""
        policy = self.shield.policy
        for text in self.said:
            self._denied = self._denied or policy.denied(self.feature, "input", text)
        if self._denied is None and self.rules.input is not False:
            self._waiting = [self.shield.guardrail.ask_input(text) for text in self.said]

    def input_refusal(self) -> Refusal | None:
        return self._denied or self._judged([waiting.result() for waiting in self._waiting])

    async def ainput_refusal(self) -> Refusal | None:
        return self._denied or self._judged([await waiting.wait() for waiting in self._waiting])

    @property
    def judges_answers(self) -> bool:
        """Whether the model judges the answer to this input, once the input is judged."""
        policy, head = self.shield.policy, self.shield.guardrail.head
        return self.rules.output is not False and policy.suspicious(self._worst, head)

    def ask_answer(self, answer: str, *, judged: int = 0) -> Waiting:
        """judged: letters that have passed before, of an answer that grows."""
        request = self.said[-1] if self.said else ""
        return self.shield.guardrail.ask_output(request, answer, judged=judged)

    def refused(self, verdict: Verdict) -> Refusal | None:
        return self.shield.policy.refused(self.feature, verdict, self.shield.guardrail.head)

    def answer_refusal(self, answer: str) -> Refusal | None:
        """Of a whole answer, after the input's."""
        if (denied := self.shield.policy.denied(self.feature, "output", answer)) is not None:
            return denied
        return self.refused(self.ask_answer(answer).result()) if self.judges_answers and answer else None

    async def aanswer_refusal(self, answer: str) -> Refusal | None:
        if (denied := self.shield.policy.denied(self.feature, "output", answer)) is not None:
            return denied
        return self.refused(await self.ask_answer(answer).wait()) if self.judges_answers and answer else None

    def check(self, answer: str) -> None:
        """Raises Blocked where the input or the answer does not pass."""
        if (refusal := self.input_refusal() or self.answer_refusal(answer)) is not None:
            raise Blocked(refusal)

    async def acheck(self, answer: str) -> None:
        if (refusal := await self.ainput_refusal() or await self.aanswer_refusal(answer)) is not None:
            raise Blocked(refusal)

    def cancel(self) -> None:
        for waiting in self._waiting:
            waiting.cancel()

    def _judged(self, verdicts: Sequence[Verdict]) -> Refusal | None:
        self._worst = max(verdicts, key=lambda verdict: verdict.harm, default=None)
        return next((found for found in map(self.refused, verdicts) if found is not None), None)


def blocks(message: str, reply: str) -> bool:
    """The default model's guardrail under the built-in policy, as a function for the red team: its --guard is
    pomona.safety.screening.blocks. reply "": the message alone."""
    return _default_shield().check(CHAT, message, reply) is not None


@cache
def _default_shield() -> Shield:
    return Shield(Guardrail.of(Model.load("smollm2-135m-4bit")))
