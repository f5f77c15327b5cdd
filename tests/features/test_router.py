"""The router: who answers under a policy; nothing leaves the device without consent."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from answering_helpers import AnsweringModel
from hypothesis import given
from hypothesis import strategies as st

from pomona import RemoteModel, features
from pomona.adapters.tasks.registry import names
from pomona.errors import PomonaError
from pomona.features.router import Offer, Policy, Router

POLICIES = st.builds(
    Policy,
    prefer=st.sampled_from(["device", "server"]),
    server_tasks=st.sampled_from([(), ("summarize",), ("chat",)]),
    device_tasks=st.sampled_from([(), ("proofread",)]),
    max_device_tokens=st.integers(0, 50),
)


def router(policy: Policy, **answers: str | PomonaError) -> tuple[Router, AnsweringModel, AnsweringModel]:
    device = AnsweringModel(lambda _: answers.get("device", "by the device"))
    server = AnsweringModel(lambda _: answers.get("server", "by the server"))
    return Router(device, server, policy), device, server  # type: ignore[arg-type]


@given(
    POLICIES,
    st.sampled_from([*names(), "chat"]),
    st.integers(0, 100),
    st.sampled_from([None, False, "yes", 1]),
)
def test_nothing_goes_to_the_server_without_a_plain_yes(
    policy: Policy, task: str, tokens: int, consent: object
) -> None:
    found, _, _ = router(policy)
    assert found.decide(task, tokens, consent).place == "device"  # type: ignore[arg-type]
    assert found.decide(task, tokens, lambda offer: consent).place == "device"  # type: ignore[arg-type, return-value]


@given(POLICIES, st.integers(0, 100))
def test_device_tasks_stay_whatever_is_agreed(policy: Policy, tokens: int) -> None:
    found, _, _ = router(policy)
    if "proofread" in policy.device_tasks:
        decision = found.decide("proofread", tokens, True)
        assert decision.place == "device" and "keeps proofread" in decision.why


@pytest.mark.parametrize(
    ("policy", "task", "tokens", "place", "why"),
    [
        (Policy(), "summarize", 10, "device", "prefers the device"),
        (Policy(), "summarize", 6001, "server", "6,001 tokens, more than the policy's 6,000, with consent"),
        (Policy(server_tasks=("summarize",)), "summarize", 1, "server", "gives summarize to the server"),
        (Policy(prefer="server"), "reply", 1, "server", "prefers the server"),
        (Policy(prefer="server", device_tasks=("reply",)), "reply", 1, "device", "keeps reply on the device"),
    ],
)
def test_the_policy_decides_and_says_why(
    policy: Policy, task: str, tokens: int, place: str, why: str
) -> None:
    decision = router(policy)[0].decide(task, tokens, True)
    assert decision.place == place and why in decision.why


def test_consent_is_asked_for_only_when_it_is_needed() -> None:
    asked: list[Offer] = []
    found, _, _ = router(Policy(server_tasks=("summarize",)))

    def consent(offer: Offer) -> bool:
        asked.append(offer)
        return len(asked) > 1

    assert found.decide("proofread", 5, consent).place == "device" and not asked
    refused = found.decide("summarize", 5, consent)
    assert refused.place == "device" and "nobody agreed" in refused.why
    assert found.decide("summarize", 7, consent).place == "server"
    assert (asked[1].task, asked[1].tokens) == ("summarize", 7)


def test_a_policy_may_demand_consent() -> None:
    found, device, server = router(Policy(prefer="server", without_consent="error"))
    with pytest.raises(PomonaError, match="nobody agreed to that; give consent"):
        features.summarize("A mail.", model=found)
    assert not device.generations and not server.generations


def test_results_say_who_answered() -> None:
    found, device, server = router(Policy(server_tasks=("summarize",)))
    result = features.summarize("A mail.", model=found, consent=True)
    assert (result.text, result.origin.place) == (
        "by the server",
        "server",
    ) and "with consent" in result.origin.why
    result = features.summarize("A mail.", model=found)
    assert (result.text, result.origin.place) == ("by the device", "device")
    assert len(server.generations) == 1 and len(device.generations) == 1


def test_an_adapters_name_is_the_devices() -> None:
    found, device, server = router(Policy(prefer="server"))
    features.summarize("A mail.", model=found, adapter="mine", consent=True)
    features.summarize("A mail.", model=found, adapter="mine")
    assert server.generations[0].adapter is None and device.generations[0].adapter == "mine"


def test_a_server_that_fails_is_replaced_by_the_device_or_not() -> None:
    found, _, _ = router(Policy(prefer="server"), server=PomonaError("status 500"))
    result = features.summarize("A mail.", model=found, consent=True)
    assert (result.origin.place, result.text) == ("device", "by the device") and "failed" in result.origin.why
    found, _, _ = router(Policy(prefer="server", on_server_error="error"), server=PomonaError("status 500"))
    with pytest.raises(PomonaError, match="status 500"):
        features.summarize("A mail.", model=found, consent=True)


def test_requests_that_are_no_task() -> None:
    found, _, server = router(Policy(server_tasks=("chat",)))
    routed = found.respond("Hello?", instructions="Be kind.", consent=True)
    assert (routed.reply.text, routed.place) == ("by the server", "server")
    assert server.generations[0].entries[0].text == "Be kind."
    assert found.respond("Hello?").place == "device"
    assert asyncio.run(found.arespond("Hello?", consent=True)).place == "server"
    broken, _, _ = router(Policy(prefer="server"), server=PomonaError("status 500"))
    assert broken.respond("Hello?", consent=True).place == "device"
    assert asyncio.run(broken.arespond("Hello?", consent=True)).place == "device"
    broken, _, _ = router(Policy(), device=PomonaError("closed"))
    with pytest.raises(PomonaError, match="closed"):
        broken.respond("Hello?")


def test_without_a_server_the_device_answers() -> None:
    decision = Router(AnsweringModel(lambda _: ""), None, Policy(prefer="server")).decide("reply", 1, True)
    assert decision.place == "device" and "there is no server" in decision.why
    with pytest.raises(PomonaError, match="must be one of this process"):
        Router(RemoteModel("http://127.0.0.1:1/v1", "m"))


def test_a_policy_is_a_file(tmp_path: Path) -> None:
    policy = Policy(server_tasks=("summarize",), max_device_tokens=100)
    path = tmp_path / "policy.json"
    path.write_text(json.dumps(policy.to_json()), encoding="utf-8")
    assert Policy.load(path) == policy
    pytest.importorskip("yaml")
    path = tmp_path / "policy.yaml"
    path.write_text("server_tasks: [summarize]\nmax_device_tokens: 100\n", encoding="utf-8")
    assert Policy.load(path) == policy


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"prefers": "server"}, "prefers is no key of it; there are prefer, server_tasks"),
        ({"prefer": "cloud"}, "prefer = cloud: must be one of device, server"),
        ({"server_tasks": "summarize"}, "must be a list"),
        ({"server_tasks": ["sumarize"]}, "server_tasks = sumarize"),
        ({"max_device_tokens": -1}, "whole number"),
        ({"max_device_tokens": True}, "whole number"),
        (
            {"server_tasks": ["reply"], "device_tasks": ["reply"]},
            "reply is in server_tasks and in device_tasks",
        ),
        ([], "must be an object"),
    ],
)
def test_a_wrong_policy_is_refused_with_its_file(values: object, message: str, tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    path.write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(PomonaError, match=message) as caught:
        Policy.load(path)
    assert str(path) in str(caught.value)


def test_a_broken_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    for raw in (b"{", b"\xff", b"[" * 100_000, b" " * 70_000):
        path.write_bytes(raw)
        with pytest.raises(PomonaError):
            Policy.load(path)
    with pytest.raises(PomonaError, match="cannot be read"):
        Policy.load(tmp_path / "none.json")
