"""Tool calls in each model's own dialect: found from the template, allowed by the guide, read back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import pytest
from pydantic import BaseModel

from pomona.errors import PomonaError
from pomona.models.chat_template import ChatTemplate
from pomona.models.tokenizer import Tokenizer
from pomona.runtime.dialects import Dialect, Splitter, find_dialect
from pomona.runtime.guided import Guide, Guides
from pomona.runtime.output import TEXT, wanted
from pomona.runtime.tools import as_tools
from pomona.runtime.transcript import Entry, Instructions, Prompt, Response, ToolCall, ToolCalls, ToolOutput

# What matters of the templates of Qwen and of Llama 3, in few words.
HERMES = """{%- if tools %}<|im_start|>system
{{ messages[0].content + '\\n' if messages[0].role == 'system' else '' }}<tools>
{%- for tool in tools %}
{{ tool | tojson }}
{%- endfor %}
</tools>
Answer <tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call><|im_end|>
{% endif %}{%- for message in messages %}
{%- if message.role == 'tool' %}<|im_start|>user
<tool_response>
{{ message.content }}
</tool_response><|im_end|>
{% elif message.role != 'system' %}<|im_start|>{{ message.role }}
{{ message.content }}
{%- for call in message.tool_calls or [] %}
<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>
{%- endfor %}<|im_end|>
{% endif %}{%- endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

LLAMA3 = """{%- for message in messages %}<|h|>{{ 'ipython' if message.role == 'tool' else message.role }}
{% if tools and loop.first %}Respond as {"name": function name, "parameters": dictionary}.
{%- for tool in tools %}
{{ tool | tojson(indent=4) }}
{%- endfor %}
{% endif %}
{%- if message.tool_calls %}
{%- if message.tool_calls | length != 1 %}{{ raise_exception('one at a time') }}{% endif %}
{%- set call = message.tool_calls[0].function %}
{{- '{"name": "' + call.name + '", "parameters": ' }}{{ call.arguments | tojson }}{{ '}' }}
{%- elif message.role == 'tool' %}{{ {'output': message.content} | tojson }}
{%- else %}{{ message.content }}{% endif %}<|e|>
{% endfor %}{% if add_generation_prompt %}<|h|>assistant
{% endif %}"""

NO_TOOLS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
XML = HERMES.replace(
    '{"name": "{{ call.function.name }}", "arguments":', "<function={{ call.function.name }}>"
)
FORGETFUL = HERMES.replace("message.tool_calls or []", "[]")  # shows the tools, but no call

Name = Literal["hermes", "llama3", "list"]


class Point(BaseModel):
    x: int


class Other:
    class Point(BaseModel):
        name: Literal["a", "b"]


def weather(city: Literal["Oslo", "Rome"], days: int = 1) -> str:
    """Weather of a city."""
    return ""


def plot(points: list[Point]) -> str:
    """Draws points."""
    return ""


def name(point: Other.Point) -> str:
    """Names a point; its type is called like that of another tool's."""
    return ""


TOOLS = as_tools([weather, plot, name])
CALLS = {
    "weather": {"city": "Oslo", "days": 3},
    "plot": {"points": [{"x": 1}, {"x": -2}]},
    "name": {"point": {"name": "a"}},
}


def written(dialect: Name, *names: str) -> str:
    """Calls as a model of this dialect writes them."""
    key = "parameters" if dialect == "llama3" else "arguments"
    calls = [json.dumps({"name": one, key: CALLS[one]}) for one in names]
    if dialect == "llama3":
        assert len(calls) == 1
        return calls[0]
    if dialect == "list":
        return f"<tool_call>[{', '.join(calls)}]</tool_call>"
    return "\n".join(f"<tool_call>\n{call}\n</tool_call>" for call in calls)


@pytest.fixture(scope="module")
def tokenizer(smollm2_dir: Path) -> Tokenizer:
    return Tokenizer.from_directory(smollm2_dir)


@pytest.fixture(scope="module")
def guides(tokenizer: Tokenizer) -> Guides:
    return Guides(tokenizer, tokenizer.vocab_size)


def allows(guides: Guides, tokenizer: Tokenizer, guide: Guide | None, text: str) -> bool:
    """Whether the guide lets this text through, and lets it end there."""
    assert guide is not None
    state = guides.start(guide)
    for token in tokenizer.encode(text):
        if not state.mask()[token // 32] >> (token % 32) & 1:
            return False
        state.accept(token)
    return state.complete


# --- which dialect ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "name"),
    [(HERMES, "hermes"), (LLAMA3, "llama3"), (NO_TOOLS, "list"), (XML, "list"), (FORGETFUL, "list")],
)
def test_the_template_tells_the_dialect(tokenizer: Tokenizer, template: str, name: str) -> None:
    model = Tokenizer(tokenizer.backend, chat_template=ChatTemplate(template))
    assert find_dialect(model) == Dialect(name)  # type: ignore[arg-type]


def test_the_real_small_model_has_no_tools_in_its_template(tokenizer: Tokenizer) -> None:
    assert find_dialect(tokenizer) == Dialect("list")
    assert find_dialect(Tokenizer(tokenizer.backend)) == Dialect("list")


# --- the prompt ---------------------------------------------------------------------------------------------

ENTRIES: tuple[Entry, ...] = (
    Instructions(text="Be brief."),
    Prompt(text="Weather?"),
    ToolCalls(text="", calls=(ToolCall(id="call00001", name="weather", arguments={"city": "Rome"}),)),
    ToolOutput(id="call00001", name="weather", text="sun"),
    Response(text="Sun."),
)


@pytest.mark.parametrize(("template", "name"), [(HERMES, "hermes"), (LLAMA3, "llama3"), (NO_TOOLS, "list")])
def test_the_prompt_shows_tools_calls_and_outputs(template: str, name: Name) -> None:
    messages, tools = Dialect(name).messages(ENTRIES, TOOLS)
    text = ChatTemplate(template).render(messages, add_generation_prompt=True, tools=tools)
    for part in ("Be brief.", "Weather of a city.", '"Rome"', "sun", "Sun.", '"days"'):
        assert part in text, part
    assert (tools is None) == (name == "list")


def test_the_outputs_of_one_round_are_one_message() -> None:
    calls = tuple(ToolCall(id=str(n), name="weather", arguments={"days": n}) for n in (1, 2))
    outputs = tuple(ToolOutput(id=str(n), name="weather", text=f"sun {n}") for n in (1, 2))
    messages, _ = Dialect("list").messages(
        (ENTRIES[1], ToolCalls(text="Well. ", calls=calls), *outputs), TOOLS
    )
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user"]
    assert messages[2]["content"] == (
        'Well. <tool_call>[{"name": "weather", "arguments": {"days": 1}}, '
        '{"name": "weather", "arguments": {"days": 2}}]</tool_call>'
    )
    assert messages[3] == {
        "role": "user",
        "content": "<tool_response>\nsun 1\n</tool_response>\n<tool_response>\nsun 2\n</tool_response>",
    }


def test_without_tools_nothing_is_said_of_them() -> None:
    for name in ("hermes", "llama3", "list"):
        messages, tools = Dialect(name).messages(ENTRIES[:2], ())  # type: ignore[arg-type]
        assert messages == [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Weather?"},
        ]
        assert tools is None


# --- the guide ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", ["hermes", "llama3", "list"])
def test_words_or_calls(guides: Guides, tokenizer: Tokenizer, dialect: Name) -> None:
    guide = Dialect(dialect).guide(TOOLS, "auto", TEXT)

    def ok(text: str) -> bool:
        return allows(guides, tokenizer, guide, text)

    assert ok("It rains in Oslo.")
    assert ok("Is 1 < 2? <tools> say {yes}")
    for tool in CALLS:
        assert ok(written(dialect, tool))
        assert not ok(written(dialect, tool) + " and so on")
        assert not ok(written(dialect, tool)[:-1])
        assert not ok(written(dialect, tool).replace(tool, "nothing", 1))
    assert not ok(written(dialect, "weather").replace("Oslo", "Paris"))
    assert not ok(written(dialect, "plot").replace("1", '"one"'))
    assert not ok(written(dialect, "name").replace('{"name": "a"}', '{"x": 1}')), "each has its own Point"
    if dialect != "llama3":
        assert ok("I look.\n" + written(dialect, "weather"))
        assert ok(written(dialect, "weather", "plot", "name"))
        assert not ok(written(dialect, *["plot"] * 9)), "eight calls in a round are enough"
        assert not ok("<tool_call>")
        assert not ok("It says <tool_response>"), "that is the tool's part"
        assert not ok("I look: <tool_use>" + written(dialect, "plot")), "nor does it look like a call"


@pytest.mark.parametrize("dialect", ["hermes", "llama3", "list"])
def test_a_call_can_be_required_or_named_or_forbidden(
    guides: Guides, tokenizer: Tokenizer, dialect: Name
) -> None:
    required = Dialect(dialect).guide(TOOLS, "required", TEXT)
    assert allows(guides, tokenizer, required, written(dialect, "plot"))
    assert not allows(guides, tokenizer, required, "It rains.")
    assert not allows(guides, tokenizer, required, "")
    named = Dialect(dialect).guide(TOOLS, "plot", TEXT)
    assert allows(guides, tokenizer, named, written(dialect, "plot"))
    assert not allows(guides, tokenizer, named, written(dialect, "weather"))
    forbidden = Dialect(dialect).guide(TOOLS, "none", TEXT)
    if dialect == "llama3":
        assert forbidden is None
    else:
        assert allows(guides, tokenizer, forbidden, "It < rains.")
        assert not allows(guides, tokenizer, forbidden, "Well: " + written(dialect, "plot"))
    assert Dialect(dialect).guide((), "none", TEXT) is None


@pytest.mark.parametrize("dialect", ["hermes", "list"])
def test_the_number_of_calls_can_be_bounded(guides: Guides, tokenizer: Tokenizer, dialect: Name) -> None:
    for choice in ("auto", "required"):
        one = Dialect(dialect).guide(TOOLS, choice, TEXT, max_calls=1)
        several = Dialect(dialect).guide(TOOLS, choice, TEXT)
        both = written(dialect, "plot", "weather")
        assert allows(guides, tokenizer, one, written(dialect, "plot"))
        assert allows(guides, tokenizer, several, both) and not allows(guides, tokenizer, one, both)


@pytest.mark.parametrize("dialect", ["hermes", "llama3", "list"])
def test_calls_beside_an_answer_that_has_a_form(guides: Guides, tokenizer: Tokenizer, dialect: Name) -> None:
    for output, good, bad in (
        (wanted(schema=Point), '{"x":1}', '{"y":1}'),
        (wanted(regex="[0-9]+/[0-9]\n|a"), "1/2\n", "1"),
        (wanted(choices=["a/b", "[c]"]), "[c]", "c"),
    ):
        guide = Dialect(dialect).guide(TOOLS, "auto", output)
        assert allows(guides, tokenizer, guide, good)
        assert not allows(guides, tokenizer, guide, bad)
        assert allows(guides, tokenizer, guide, written(dialect, "weather"))
    with pytest.raises(PomonaError, match="grammar: cannot stand beside tools"):
        Dialect(dialect).guide(TOOLS, "auto", wanted(grammar="start: /a/"))
    grammar = wanted(grammar="start: /a/")
    assert Dialect(dialect).guide(TOOLS, "none", grammar) == grammar.guide


def test_a_trigger_that_is_a_control_token(smollm2_dir: Path) -> None:
    special = Tokenizer.from_directory(smollm2_dir)
    special.backend.add_special_tokens(["<tool_call>", "</tool_call>"])
    special = Tokenizer(
        special.backend, eos_token_ids=special.eos_token_ids, chat_template=ChatTemplate(HERMES)
    )
    dialect = find_dialect(special)
    assert dialect == Dialect("hermes", special_trigger=True)
    guides = Guides(special, special.vocab_size)
    for choice, text in (("auto", "Well.\n"), ("required", "")):
        guide = dialect.guide(TOOLS, choice, TEXT)
        assert allows(guides, special, guide, text + written("hermes", "weather", "plot"))
        assert not allows(guides, special, guide, text + written("hermes", "weather").replace("Oslo", "x"))
    assert not allows(guides, special, dialect.guide(TOOLS, "none", TEXT), written("hermes", "plot"))


def test_a_schema_that_cannot_be_expressed_is_refused(guides: Guides) -> None:
    def odd(values: set[int]) -> str:
        """Wants different numbers."""
        return ""

    with pytest.raises(PomonaError, match=r"cannot be used .*uniqueItems"):
        guides.start(Dialect("list").guide(as_tools([odd]), "auto", TEXT))  # type: ignore[arg-type]


# --- reading ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", ["hermes", "llama3", "list"])
@pytest.mark.parametrize("lead", ["", "I look.\n", "a < b <tool"])
def test_calls_are_read_however_the_text_is_cut(dialect: Name, lead: str) -> None:
    if dialect == "llama3":
        lead = ""
    names = ["weather"] if dialect == "llama3" else ["weather", "plot"]
    text = lead + written(dialect, *names)
    for size in (1, 2, 7, len(text)):
        splitter = Dialect(dialect).splitter(TOOLS, "auto")
        said = [splitter.push(text[start : start + size]) for start in range(0, len(text), size)]
        assert "".join(said) + splitter.finish() == splitter.text == lead
        calls = Dialect(dialect).read(splitter.held, TOOLS, 4)
        assert calls is not None
        assert [(call.id, call.name, call.arguments) for call in calls] == [
            (f"call{number:05d}", name, CALLS[name]) for number, name in enumerate(names, 5)
        ]


@pytest.mark.parametrize("dialect", ["hermes", "llama3", "list"])
def test_words_come_through_at_once(dialect: Name) -> None:
    splitter = Dialect(dialect).splitter(TOOLS, "auto")
    pieces = ["", "Well", ", a ", "<", "tool", "s> {x}", " <tool_ca"]
    said = [splitter.push(piece) for piece in pieces]
    assert "".join(said) + splitter.finish() == "".join(pieces) == splitter.text
    assert said[:3] == ["", "Well", ", a "]
    assert not splitter.held
    plain = Dialect(dialect).splitter(TOOLS, "none")
    assert plain.push(written(dialect, "plot")) == written(dialect, "plot")


def test_what_was_held_can_be_released() -> None:
    splitter = Splitter("{", True)
    assert splitter.push('{"x"') == ""
    assert splitter.push(":1}") == ""
    assert splitter.release() == '{"x":1}' == splitter.text


@pytest.mark.parametrize("dialect", ["hermes", "llama3", "list"])
def test_what_is_no_complete_call_is_none(dialect: Name) -> None:
    whole = written(dialect, "weather")
    for text in (
        whole[:-14],
        whole.replace("weather", "unknown"),
        whole.replace('"name"', '"nome"'),
        whole.replace('{"city": "Oslo", "days": 3}', "[]"),
        "",
        "<tool_call>[]</tool_call>",
        "<tool_call>" + "[" * 100_000,
    ):
        assert Dialect(dialect).read(text, TOOLS, 0) is None
