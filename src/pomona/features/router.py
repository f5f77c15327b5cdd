"""Router: who answers a request, this device or a server, under a written policy, and never off it unasked.

    policy = Policy(server_tasks=("summarize",), max_device_tokens=6000)
    router = Router(device=model, server=RemoteModel(...), policy=policy)
    result = features.summarize(text, model=router, consent=ask_the_user)
    print(result.origin.place, result.origin.why)

Consent belongs to a request: True, or a function that is asked with an Offer and says yes or no. Without it
nothing leaves the device, whatever the policy says.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from pomona.errors import PomonaError
from pomona.features.results import Place
from pomona.runtime.backend import LanguageModel
from pomona.runtime.remote import RemoteModel
from pomona.runtime.reply import Reply

CHAT = "chat"  # the name of a request that is no task, for the policy
_MAX_POLICY_BYTES = 1 << 16


@dataclass(frozen=True)
class Policy:
    """When the server is the better place. Names are those of tasks, and "chat" for requests that are none.

    device_tasks never leave the device and come before everything else. without_consent, on_server_error: the
    device answers, or the request fails.
    """

    prefer: Place = "device"
    server_tasks: tuple[str, ...] = ()
    device_tasks: tuple[str, ...] = ()
    max_device_tokens: int = 6000  # of content; longer ones rather go to the server
    without_consent: Literal["device", "error"] = "device"
    on_server_error: Literal["device", "error"] = "device"

    def __post_init__(self) -> None:
        from pomona.adapters.tasks.registry import names

        _one_of("prefer", self.prefer, get_args(Place))
        _one_of("without_consent", self.without_consent, ("device", "error"))
        _one_of("on_server_error", self.on_server_error, ("device", "error"))
        limit = self.max_device_tokens
        if not isinstance(limit, int) or isinstance(limit, bool) or limit < 0:
            raise PomonaError(f"policy: max_device_tokens = {str(limit)[:40]}: must be a whole number from 0")
        for key in ("server_tasks", "device_tasks"):
            given = getattr(self, key)
            if isinstance(given, str) or not isinstance(given, list | tuple):
                raise PomonaError(f"policy: {key} must be a list of names of tasks")
            for name in given:
                _one_of(key, name, (*names(), CHAT))
            object.__setattr__(self, key, tuple(given))
        both = ", ".join(set(self.server_tasks) & set(self.device_tasks))
        if both:
            raise PomonaError(f"policy: {both} is in server_tasks and in device_tasks; take it out of one")

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Policy:
        """From plain values; an unknown key is refused."""
        if not isinstance(values, Mapping):
            raise PomonaError("policy: must be an object with the keys of Policy; see docs/features.md")
        known = [field.name for field in fields(cls)]
        unknown = ", ".join(str(key)[:40] for key in values if key not in known)
        if unknown:
            raise PomonaError(f"policy: {unknown} is no key of it; there are {', '.join(known)}")
        return cls(**values)

    @classmethod
    def load(cls, path: Path | str) -> Policy:
        """From a .json file, or a .yaml one where PyYAML is installed."""
        path = Path(path)
        try:
            with path.open("rb") as file:
                raw = file.read(_MAX_POLICY_BYTES + 1)
            text = raw.decode("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise PomonaError(f"{path}: cannot be read ({error}); check the path") from error
        if len(raw) > _MAX_POLICY_BYTES:
            raise PomonaError(f"{path}: is larger than 64 KiB, which no policy is; give another file")
        try:
            return cls.of(_yaml(path, text) if path.suffix in (".yaml", ".yml") else json.loads(text))
        except (ValueError, RecursionError) as error:
            raise PomonaError(f"{path}: is no JSON ({error}); mend it") from error
        except PomonaError as error:
            raise PomonaError(f"{path}: {error}") from error

    def to_json(self) -> dict[str, Any]:
        return {field.name: _listed(getattr(self, field.name)) for field in fields(self)}


@dataclass(frozen=True)
class Offer:
    """What would be sent where: what a user is asked. `server`: the address."""

    task: str
    tokens: int
    server: str
    why: str


Consent = bool | Callable[[Offer], bool] | None


@dataclass(frozen=True)
class Decision:
    place: Place
    why: str


@dataclass(frozen=True)
class Routed:
    """A reply, and who gave it."""

    reply: Reply[Any]
    place: Place
    why: str


class Router:
    """device: a model of this process. server: None means that there is none."""

    def __init__(
        self, device: LanguageModel, server: RemoteModel | None = None, policy: Policy | None = None
    ) -> None:
        if isinstance(device, RemoteModel):
            raise PomonaError("router: the device's model must be one of this process, not a RemoteModel")
        if server is not None and not isinstance(server, LanguageModel):
            raise PomonaError("router: the server must be a RemoteModel")
        self.device, self.server, self.policy = device, server, policy or Policy()

    def decide(self, task: str, tokens: int, consent: Consent = None) -> Decision:
        """Where a request of so many tokens goes. Asks for consent only if it would go to the server."""
        policy = self.policy
        if task in policy.device_tasks:
            return Decision("device", f"the policy keeps {task} on the device")
        if task in policy.server_tasks:
            why = f"the policy gives {task} to the server"
        elif tokens > policy.max_device_tokens:
            why = f"the text has {tokens:,} tokens, more than the policy's {policy.max_device_tokens:,}"
        elif policy.prefer == "server":
            why = "the policy prefers the server"
        else:
            return Decision("device", "the policy prefers the device")
        if self.server is None:
            return Decision("device", f"{why}, but there is no server")
        address = getattr(getattr(self.server, "address", None), "base_url", "the server")
        if self._agreed(consent, Offer(task, tokens, address, why)):
            return Decision("server", f"{why}, with consent")
        if policy.without_consent == "error":
            raise PomonaError(f"{why}, and nobody agreed to that; give consent, or change the policy")
        return Decision("device", f"{why}, but nobody agreed to that")

    def respond(
        self, prompt: str, *, instructions: str | None = None, consent: Consent = None, **options: Any
    ) -> Routed:
        """One request that is no task; options as those of a session's turn."""
        model, decision = self._routed(prompt, instructions, consent)
        try:
            reply = model.session(instructions=instructions).respond(prompt, **options)
        except PomonaError as error:
            decision = self._after(error, decision)
            reply = self.device.session(instructions=instructions).respond(prompt, **options)
        return Routed(reply, decision.place, decision.why)

    async def arespond(
        self, prompt: str, *, instructions: str | None = None, consent: Consent = None, **options: Any
    ) -> Routed:
        """The same for asyncio."""
        model, decision = self._routed(prompt, instructions, consent)
        try:
            reply = await model.session(instructions=instructions).arespond(prompt, **options)
        except PomonaError as error:
            decision = self._after(error, decision)
            reply = await self.device.session(instructions=instructions).arespond(prompt, **options)
        return Routed(reply, decision.place, decision.why)

    def _routed(
        self, prompt: str, instructions: str | None, consent: Consent
    ) -> tuple[LanguageModel, Decision]:
        tokenizer = getattr(self.device, "tokenizer", None)
        text = f"{instructions or ''}\n{prompt}"
        tokens = len(text.encode()) // 3 if tokenizer is None else len(tokenizer.encode(text))
        decision = self.decide(CHAT, tokens, consent)
        server = self.server if decision.place == "server" else None
        return server or self.device, decision

    def _after(self, error: PomonaError, decision: Decision) -> Decision:
        """The decision when the chosen model failed; the error itself if that is the end."""
        if decision.place == "device" or self.policy.on_server_error == "error":
            raise error
        return Decision("device", "the server failed, so the device answered")

    def _agreed(self, consent: Consent, offer: Offer) -> bool:
        """Only a plain yes is one: whatever else a callback returns, or a text like "no", is none."""
        if callable(consent):
            return consent(offer) is True
        return consent is True


def _one_of(key: str, value: object, allowed: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in allowed:
        raise PomonaError(f"policy: {key} = {str(value)[:40]}: must be one of {', '.join(allowed)}")


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _yaml(path: Path, text: str) -> Any:
    try:
        import yaml
    except ImportError as error:
        raise PomonaError("YAML needs PyYAML; install it, or write the policy as JSON") from error
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise PomonaError(f"is no YAML ({error}); mend it") from error
