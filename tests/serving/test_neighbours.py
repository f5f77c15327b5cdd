"""Programs of other people, unchanged, against a running server: what docs/neighbours/ tells their users.

`pomona serve` runs in a process of its own, on the real model with one adapter beside it. The answers are
greedy, so every client must get the same ones.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.adapter_files import RandomAdapter
from benchmarks.servers import PomonaServer, linked_model
from pomona.models.config import ModelConfig

DOCS = Path(__file__).resolve().parents[2] / "docs" / "neighbours"
QUESTION = "What is the capital of France?"
TOKENS = 12
KEY = "a-key-of-sixteen-or-more"


@pytest.fixture(scope="module")
def model(smollm2_4bit_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = linked_model(smollm2_4bit_dir, tmp_path_factory.mktemp("neighbours") / smollm2_4bit_dir.name)
    RandomAdapter(ModelConfig.from_directory(directory), 3).write_peft(directory / "adapters" / "summarize")
    return directory


@pytest.fixture(scope="module")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PomonaServer]:
    folder = tmp_path_factory.mktemp("server")
    with PomonaServer(model, folder, threads=1, settings={"api_key": KEY}) as running:
        yield running


@pytest.fixture(scope="module")
def url(server: PomonaServer) -> str:
    return f"http://127.0.0.1:{server.port}/v1"


@pytest.fixture(scope="module")
def said(url: str, model: Path) -> dict[str, str]:
    """What the official client gets, by model id."""
    from openai import OpenAI

    with OpenAI(base_url=url, api_key=KEY) as client:
        answers = {}
        for name in (model.name, f"{model.name}:summarize"):
            reply = client.chat.completions.create(
                model=name,
                messages=[{"role": "user", "content": QUESTION}],
                max_tokens=TOKENS,
                temperature=0,
            )
            answers[name] = reply.choices[0].message.content or ""
    assert "Paris" in answers[model.name]
    assert answers[model.name] != answers[f"{model.name}:summarize"]
    return answers


def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A program of this environment, offline."""
    # The package of the built-in model is a plugin of llm too, and asks for llama-cpp-python.
    alone = {"LLM_LOAD_PLUGINS": ""}
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    return subprocess.run(
        [sys.executable, "-m", *words],
        env={**os.environ, **offline, **alone, **environment},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def code_blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of a page of docs/neighbours/ in one language."""
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


class TestOpenAI:
    def test_the_page_s_program_runs(
        self,
        url: str,
        said: dict[str, str],
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setenv("POMONA_API_KEY", KEY)
        (program, *_) = code_blocks("openai", "python")
        program = program.replace("http://127.0.0.1:8000/v1", url)
        assert url in program
        exec(compile(program, "docs/neighbours/openai.md", "exec"), {})
        assert "Paris" in capsys.readouterr().out

    def test_base_and_adapters_are_models(self, url: str, model: Path) -> None:
        from openai import OpenAI

        with OpenAI(base_url=url, api_key=KEY) as client:
            ids = {entry.id for entry in client.models.list()}
        assert {model.name, f"{model.name}:base", f"{model.name}:summarize"} <= ids

    def test_what_is_ours_goes_through_extra_body_and_comes_in_model_extra(
        self, url: str, model: Path
    ) -> None:
        from openai import OpenAI

        with OpenAI(base_url=url, api_key=KEY) as client:
            reply = client.chat.completions.create(
                model=f"{model.name}:summarize",
                messages=[{"role": "user", "content": QUESTION}],
                max_tokens=2,
                extra_body={"min_p": 0.1},
            )
        assert reply.model_extra is not None
        assert (reply.model_extra["adapter"], reply.model_extra["adapter_version"]) == ("summarize", 1)
        assert reply.model_extra["timings"]["first_token_seconds"] > 0

    def test_without_the_key_nothing_is_answered(self, url: str) -> None:
        from openai import AuthenticationError, OpenAI

        client = OpenAI(base_url=url, api_key="another-key-altogether", max_retries=0)
        with client, pytest.raises(AuthenticationError):
            client.models.list()


class TestLlm:
    @pytest.fixture
    def folder(self, url: str, tmp_path: Path) -> Path:
        """LLM_USER_PATH with the file of the page, its address replaced."""
        (models,) = code_blocks("llm", "yaml")
        assert "http://127.0.0.1:8000/v1" in models
        text = models.replace("http://127.0.0.1:8000/v1", url)
        (tmp_path / "extra-openai-models.yaml").write_text(text, encoding="utf-8")
        (tmp_path / "keys.json").write_text(json.dumps({"pomona": KEY}), encoding="utf-8")
        return tmp_path

    @pytest.mark.parametrize("stream", [True, False])
    def test_it_answers(self, folder: Path, said: dict[str, str], stream: bool) -> None:
        words = ["llm", "-m", "pomona", QUESTION, "-o", "temperature", "0", "-o", "max_tokens", str(TOKENS)]
        done = run(*words, *(() if stream else ("--no-stream",)), LLM_USER_PATH=str(folder))
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == said["smollm2-135m-4bit"].strip()

    def test_an_adapter_is_a_model_of_its_own(self, folder: Path, said: dict[str, str]) -> None:
        words = ["llm", "-m", "pomona-summarize", QUESTION, "-o", "temperature", "0"]
        done = run(*words, "-o", "max_tokens", str(TOKENS), LLM_USER_PATH=str(folder))
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == said["smollm2-135m-4bit:summarize"].strip()

    def test_a_schema_is_obeyed(self, folder: Path) -> None:
        done = run(
            "llm", "-m", "pomona", "Invent a dog.", "--schema", "name, age int", "-o", "temperature", "0",
            LLM_USER_PATH=str(folder),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        dog = json.loads(done.stdout)
        assert isinstance(dog["name"], str) and isinstance(dog["age"], int)


class TestLangChain:
    @pytest.fixture
    def chat(self, url: str, model: Path) -> Any:
        from langchain_openai import ChatOpenAI

        return ChatOpenAI(
            base_url=url, api_key=KEY, model=model.name, temperature=0, max_tokens=TOKENS, max_retries=0
        )

    def test_it_answers_and_counts(self, chat: Any, said: dict[str, str], model: Path) -> None:
        reply = chat.invoke(QUESTION)
        assert reply.content == said[model.name]
        assert reply.usage_metadata["output_tokens"] <= TOKENS
        assert reply.usage_metadata["input_tokens"] > 10

    def test_it_streams(self, chat: Any, said: dict[str, str], model: Path) -> None:
        pieces = [chunk.content for chunk in chat.stream(QUESTION)]
        assert "".join(pieces) == said[model.name]
        assert len([piece for piece in pieces if piece]) > 1

    def test_an_adapter_by_its_model_id(self, chat: Any, said: dict[str, str], model: Path) -> None:
        name = f"{model.name}:summarize"
        assert chat.bind(model=name).invoke(QUESTION).content == said[name]

    def test_structured_output_and_tools(self, chat: Any) -> None:
        from pydantic import BaseModel, Field

        class City(BaseModel):
            """A city."""

            name: str = Field(max_length=30)
            country: str = Field(max_length=30)

        longer = chat.model_copy(update={"max_tokens": 200})
        for method in ("json_schema", "function_calling"):
            city = longer.with_structured_output(City, method=method).invoke(
                "Which city is the capital of France?"
            )
            assert isinstance(city, City), method

    def test_the_page_s_program_runs(
        self, url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("POMONA_API_KEY", KEY)
        (program, *_) = code_blocks("langchain", "python")
        exec(compile(program.replace("http://127.0.0.1:8000/v1", url), "langchain.md", "exec"), {})
        assert "Paris" in capsys.readouterr().out


@pytest.mark.slow
def test_lm_eval_measures_a_local_task(url: str, model: Path, tmp_path: Path) -> None:
    """The task and the command of the page, with a data set of four questions."""
    questions = {
        "What is the capital of France?": "Paris",
        "What is the capital of Italy?": "Rome",
        "What is the capital of Spain?": "Madrid",
        "Who invented the flying teapot in 1872?": "Zebulon",
    }
    data = tmp_path / "questions.jsonl"
    rows = [json.dumps({"question": question, "answer": answer}) for question, answer in questions.items()]
    data.write_text("\n".join(rows) + "\n", encoding="utf-8")
    (task,) = code_blocks("lm_eval", "yaml")
    assert "questions.jsonl" in task
    (tmp_path / "capitals.yaml").write_text(task.replace("questions.jsonl", str(data)), encoding="utf-8")
    (command,) = code_blocks("lm_eval", "sh")
    words = " ".join(command.replace("\\\n", " ").split()).split(" ")
    assert words[0] == "lm_eval"
    words = [
        word.replace("http://127.0.0.1:8000/v1", url).replace("results", str(tmp_path / "r"))
        for word in words
    ]
    words[words.index("--include_path") + 1] = str(tmp_path)
    done = run(*words, OPENAI_API_KEY=KEY)
    assert done.returncode == 0, done.stderr[-2000:]
    (result,) = (tmp_path / "r").rglob("results_*.json")
    found = json.loads(result.read_text(encoding="utf-8"))
    assert found["results"]["capitals"]["exact_match,first"] == 0.75


def test_what_open_webui_sends_is_answered(url: str, said: dict[str, str], model: Path) -> None:
    """Open WebUI is not installed here: its two requests, with its headers, by hand."""
    import httpx2

    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    with httpx2.Client(headers=headers, timeout=60) as client:
        models = client.get(f"{url}/models").json()
        assert models["object"] == "list" and model.name in {entry["id"] for entry in models["data"]}
        body = {
            "stream": True,
            "model": model.name,
            "messages": [{"role": "user", "content": QUESTION}],
            "temperature": 0,
            "max_tokens": TOKENS,
            "stream_options": {"include_usage": True},
        }
        with client.stream("POST", f"{url}/chat/completions", json=body) as reply:
            assert reply.headers["content-type"].startswith("text/event-stream")
            events = [line.removeprefix("data: ") for line in reply.iter_lines() if line]
    assert events[-1] == "[DONE]"
    chunks = [json.loads(event) for event in events[:-1]]
    words = [c["choices"][0]["delta"].get("content") or "" for c in chunks if c["choices"]]
    assert "".join(words) == said[model.name]
    assert chunks[-1]["usage"]["completion_tokens"] <= TOKENS


def test_every_neighbour_has_its_page() -> None:
    pages = {path.stem for path in DOCS.glob("*.md")}
    judges = {"alpaca_eval", "arena_hard", "helm", "mt_bench"}
    assert pages == {"langchain", "llm", "lm_eval", "open_webui", "openai"} | judges
    index = (DOCS.parent / "index.md").read_text(encoding="utf-8")
    for page in pages:
        assert f"(neighbours/{page}.md)" in index
