"""Features under guard: a model's shield judges the contents and answers of every feature that runs on it.

    model.shield = Shield(Guardrail.of(model), GuardrailPolicy.read("policy.yaml"))
    features.summarize(mail, model=model)          # raises Blocked, whose `refusal` says why

A feature's name in the policy is its task's. Texts that a Router sends to a server are the server's to judge.
"""

from __future__ import annotations

from pomona.runtime.backend import LanguageModel
from pomona.safety.screening import Exchange, Shield


def shield_of(model: LanguageModel) -> Shield | None:
    shield: Shield | None = model.shield
    return shield


def begun(model: LanguageModel, feature: str, content: str) -> Exchange | None:
    """The check of a content is on its way when this returns."""
    shield = shield_of(model)
    return None if shield is None else shield.begin(feature, [content])
