"""Chat templates render what transformers renders, in a sandbox, and their errors are one line."""

from __future__ import annotations

import dataclasses
import enum
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from pomona.errors import PomonaError
from pomona.models.chat_template import ChatTemplate

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}

CHATML = """\
{% for message in messages %}
    {% if loop.first and message.role != 'system' %}
<|im_start|>system
You are helpful.<|im_end|>
    {% endif %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.role == 'assistant' %}{% generation %}{{ message.content }}{% endgeneration %}
    {%- else %}{{ message.content }}{% endif %}
    {{- '<|im_end|>\\n' }}
{% endfor %}
{% if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{% endif %}
"""

LLAMA_3 = """\
{{- bos_token }}
{%- if custom is defined %}{% set date = custom %}
{%- else %}{% set date = strftime_now('%d %b %Y') %}{% endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = '' %}
{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\n' }}
{%- if tools is not none %}
    {{- 'Environment: ipython\\n' }}
{%- endif %}
{{- 'Today: ' + date + '\\n\\n' + system_message + '<|eot_id|>' }}
{%- if tools is not none %}
    {%- for tool in tools %}
        {{- tool | tojson(indent=4) }}
        {{- '\\n' }}
    {%- endfor %}
{%- endif %}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
        {{- message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if message.tool_calls | length != 1 %}
            {{- raise_exception('This model only supports single tool-calls at once!') }}
        {%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '{"name": "' + call.name + '", "parameters": ' + (call.arguments | tojson) + '}<|eot_id|>' }}
    {%- else %}
        {{- '<|start_header_id|>ipython<|end_header_id|>\\n\\n' }}
        {%- if message.content is mapping or message.content is iterable and message.content is not string %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

EVERYTHING = """\
{%- set ns = namespace(count=0, last=none) %}
{%- for message in messages %}
    {%- if message.role == 'skip' %}{% continue %}{% endif %}
    {%- if ns.count >= 3 %}{% break %}{% endif %}
    {%- set ns.count = ns.count + 1 %}
    {%- set ns.last = message %}
[{{ loop.index0 }}:{{ message.role | upper }}] {{ message | tojson }} {{ message.get('name', '-') }}
    {%- if message.reasoning_content is defined %} think={{ message.reasoning_content }}{% endif %}
{% endfor %}
{{ ns.count }} {{ ns.last | tojson(ensure_ascii=True, sort_keys=True) }}
{{ documents is none }} {{ tools is none }} {{ extra | default('none') }} {{ missing is defined }}
{{ dict(a=1, b='<&>') | tojson(separators=(',', ':')) }}
{% macro twice(x) %}{{ x }}{{ x }}{% endmacro %}{{ twice(eos_token) }}{# a comment #}
  {% if true %}
    indented
  {% endif %}
{{ bos_token }}{{ unk_token }}{{ pad_token }}{{ sep_token }}
"""

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "wetter",
            "description": 'Wetter für <Ort> & Tag, "heute"',
            "parameters": {
                "type": "object",
                "properties": {"ort": {"type": "string", "enum": ["Köln", "京都"]}},
            },
        },
    },
    {"name": "noop", "parameters": {}},
]

CHATS: dict[str, list[dict[str, Any]]] = {
    "one question": [{"role": "user", "content": "Hello"}],
    "with a system line": [
        {"role": "system", "content": " Be brief. "},
        {"role": "user", "content": "Hello"},
    ],
    "several turns": [
        {"role": "user", "content": "1 + 1?"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "and\n\n  more\ttabs  "},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": "ok"},
    ],
    "unicode": [{"role": "user", "content": "héllo 日本語 🎉👩‍👩‍👧 \u2028 \u00a0 \ufeff שלום e\u0301 \x00"}],
    "markup": [
        {"role": "user", "content": "<b>&amp;</b> \"quoted\" 'single' \\n {{ 7*7 }} {% raw %} <|im_end|>"}
    ],
    "names and unknown keys": [{"role": "user", "name": "Ann", "content": "x", "weight": 0.5, "cache": None}],
    "tool calls": [
        {"role": "user", "content": "Wetter?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {
                    "type": "function",
                    "function": {
                        "name": "wetter",
                        "arguments": {"ort": "Köln", "tage": [1, 2.5, True, None]},
                    },
                }
            ],
        },
        {"role": "tool", "content": {"grad": -3.5, "text": "<kalt>"}},
        {"role": "tool", "content": "plain"},
    ],
    "reasoning": [
        {"role": "user", "content": "x"},
        {"role": "assistant", "thinking": "hm", "content": "y"},
        {"role": "assistant", "reasoning": "aha", "content": "z"},
    ],
    "roles to skip": [
        {"role": "skip", "content": "no"},
        *({"role": "user", "content": str(n)} for n in range(6)),
    ],
}

SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {"add_generation_prompt": False},
    "open": {"add_generation_prompt": True},
    "tools": {"add_generation_prompt": True, "tools": TOOLS},
    "no tools": {"add_generation_prompt": False, "tools": []},
    "variables": {
        "add_generation_prompt": True,
        "custom": "1 May 2024",
        "extra": {"k": ["é", 1]},
        "bos_token": "<B>",
    },
    "documents": {"add_generation_prompt": False, "documents": [{"title": "t", "text": "u"}]},
}


def peer(template: str) -> Any:
    transformers = pytest.importorskip("transformers", reason="the peer of this test")
    from tokenizers import Tokenizer, models

    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), **SPECIAL)
    tokenizer.chat_template = template
    return tokenizer


def outcome(render: Any) -> str | None:
    """The text, or None where rendering fails: both sides must then fail."""
    try:
        text = render()
        assert isinstance(text, str)
        return text
    except Exception:
        return None


@pytest.fixture(params=["SmolLM2", "ChatML", "Llama 3", "everything"])
def template(request: pytest.FixtureRequest) -> str:
    if request.param == "SmolLM2":
        directory: Path = request.getfixturevalue("smollm2_dir")
        return (directory / "chat_template.jinja").read_text(encoding="utf-8")
    return {"ChatML": CHATML, "Llama 3": LLAMA_3, "everything": EVERYTHING}[request.param]


def test_rendering_equals_transformers(template: str) -> None:
    theirs, ours = peer(template), ChatTemplate(template, special_tokens=SPECIAL)
    rendered = 0
    for chat_name, chat in CHATS.items():
        for name, settings in SETTINGS.items():
            expected = outcome(lambda c=chat, s=settings: theirs.apply_chat_template(c, tokenize=False, **s))
            assert outcome(lambda c=chat, s=settings: ours.render(c, **s)) == expected, (chat_name, name)
            rendered += expected is not None
    assert rendered >= 40  # of 54: the rest are tool messages that a template without tools cannot show


def test_multiple_tool_calls_raise_the_templates_own_message() -> None:
    call = {"function": {"name": "f", "arguments": {}}}
    chat = [{"role": "user", "content": "x"}, {"role": "assistant", "tool_calls": [call, call]}]
    with pytest.raises(
        PomonaError, match=r"^model/chat_template.jinja: .*This model only supports single tool-calls"
    ):
        ChatTemplate(LLAMA_3, special_tokens=SPECIAL, source="model/chat_template.jinja").render(
            chat, add_generation_prompt=False
        )


def render(template: str, messages: Any = None, **variables: Any) -> str:
    chat = [{"role": "user", "content": "x"}] if messages is None else messages
    return ChatTemplate(template).render(chat, add_generation_prompt=False, **variables)


def test_the_time_is_now() -> None:
    before = datetime.now().strftime("%Y-%m-%d")
    assert render("{{ strftime_now('%Y-%m-%d') }}") in (before, datetime.now().strftime("%Y-%m-%d"))


@pytest.mark.parametrize(
    "attack",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role='x') }}",
        "{{ raise_exception.__globals__ }}",
        "{{ strftime_now.__globals__['sys'] }}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ dict.__call__.__globals__ }}",
        "{{ dict.mro() }}",
        "{% set ns = namespace(__class__=1) %}{{ ns }}",
        "{% set ns = namespace() %}{% set ns._x = 1 %}{{ ns }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ self._TemplateReference__context }}",
        "{{ '{0.__class__}'.format(1) }}",
        "{% for x in range(1000000) %}{% endfor %}",
        "{% include 'secret' %}",
    ],
)
def test_the_sandbox_holds(attack: str) -> None:
    """Jinja's sandbox makes a forbidden attribute undefined: using it is an error, printing it gives
    nothing."""
    try:
        assert render(attack) == ""
    except PomonaError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{% if %}", "in line 1"),
        ("\n\n{{ 1 +", "in line 3"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ messages[0].content + 1 }}", "str"),
        ("{{ nothing.at.all }}", "undefined"),
        ("{{ raise_exception('line one\nline two') }}", "line one"),
        ("{{ messages | tojson(indent='x' * 3, bad=1) }}", "bad"),
        ("{{ " + "(" * 4000 + "1" + ")" * 4000 + " }}", "chat template refused"),
        ("x" * (1 << 21), "characters"),
    ],
)
def test_errors_of_a_template_are_one_line(template: str, expected: str) -> None:
    with pytest.raises(PomonaError, match=expected) as caught:
        render(template)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_messages_must_be_a_list_of_objects_of_plain_data() -> None:
    for wrong in (
        [],
        "text",
        {"role": "user"},
        ["text"],
        [{"role": "user", "content": object()}],
        [{"a": b"raw"}],
    ):
        with pytest.raises(PomonaError, match="chat template: "):
            render("{{ messages[0].content }}", wrong)
    nested: list[Any] = []
    for _ in range(100):
        nested = [nested]
    with pytest.raises(PomonaError, match="nested deeper"):
        render("", [{"role": "user", "content": nested}])
    with pytest.raises(PomonaError, match="a tool is no JSON schema"):
        render("", tools=[len])
    with pytest.raises(PomonaError, match="continue_final_message is not supported"):
        render("", continue_final_message=True)


def test_rich_objects_reach_the_template_as_plain_data() -> None:
    class Role(enum.StrEnum):
        USER = "user"

    @dataclasses.dataclass
    class Message:
        role: Role
        content: Any

    class Dumped:
        def model_dump(self) -> dict[str, Any]:
            return {"role": "user", "content": (1, 2.5, True, None)}

    chat = [Message(Role.USER, {"a": [1]}), Dumped()]
    assert render("{{ messages | tojson }}", chat) == (
        '[{"role": "user", "content": {"a": [1]}}, {"role": "user", "content": [1, 2.5, true, null]}]'
    )


def test_rendering_leaves_the_messages_alone_and_can_be_repeated() -> None:
    chat = [{"role": "user", "content": "x", "thinking": "t", "name": None}]
    before = [dict(message) for message in chat]
    template = ChatTemplate("{{ messages | tojson }}")
    first = template.render(chat, add_generation_prompt=False)
    assert chat == before and template.render(chat, add_generation_prompt=False) == first
    assert template.text == "{{ messages | tojson }}"


def test_a_template_of_several_needs_a_default() -> None:
    both = ChatTemplate({"default": "d", "tool_use": "t"})
    chat = [{"role": "user", "content": "x"}]
    assert both.render(chat, add_generation_prompt=False) == "d"
    assert both.render(chat, add_generation_prompt=False, tools=TOOLS) == "t"
    with pytest.raises(PomonaError, match=r"no default chat template \(there are: rag"):
        ChatTemplate({"rag": "x"})
