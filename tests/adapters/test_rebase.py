"""An adapter carried over to a new base: it answers there as it did on the old one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from adapter_samples import TINY

from pomona.adapters import store
from pomona.adapters.metadata import read_record
from pomona.adapters.rebase import RebaseOptions, read_prompts, rebase, write_answers
from pomona.adapters.training.rebase_trainer import Batch, answer_states, values_of, wear
from pomona.compression.compress import compress
from pomona.compression.training.network import Network
from pomona.errors import PomonaError
from pomona.models.palettized import describe
from pomona.models.random_init import random_model
from pomona.runtime.adapter_file import read_adapter
from pomona.runtime.adapter_writer import write_adapter
from pomona.runtime.adapters import load_adapter
from pomona.runtime.engine import Engine

TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
CONFIG = replace(TINY, hidden_size=128, intermediate_size=256, num_attention_heads=4, num_key_value_heads=2)
OPTIONS = RebaseOptions(answer_tokens=12, passes=4, lr=3e-3, batch=4)
INSTRUCTIONS = "Say less."


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def byte_tokenizer(directory: Path) -> Path:
    """Files of a tokenizer whose tokens are the 256 bytes, with a chat template and no end token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text("{}")
    (directory / "chat_template.jinja").write_text(TEMPLATE)
    return directory


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model with the adapter `brief`, and the same model at 2 bits."""
    folder = tmp_path_factory.mktemp("bases")
    (folder / "tokenizer").mkdir()
    tokenizer = byte_tokenizer(folder / "tokenizer")
    old = random_model(CONFIG, folder / "old", seed=5, perturb_norms=True, tokenizer_from=tokenizer)
    compress(old, folder / "new", bits=2, calibration="none", table_columns=64)
    random = np.random.default_rng(1)
    pairs = {
        name: (
            (random.normal(size=(4, columns)) / columns**0.5).astype(np.float32),
            (random.normal(size=(rows, 4)) * 0.15).astype(np.float32),
        )
        for name, (rows, columns) in CONFIG.linear_shapes().items()
    }
    record = {
        "version": 1,
        "task": "brief",
        "base_fingerprint": describe(old).fingerprint,
        "license": "mit",
        "prompt": {"instructions": INSTRUCTIONS},
        "recipe": {"loss": "none, it is random"},
    }
    write_adapter(old / "adapters" / "brief", pairs, scale=2.0, record=record)
    return old, folder / "new"


@pytest.fixture
def old(bases: tuple[Path, Path]) -> Path:
    return bases[0]


@pytest.fixture
def new(bases: tuple[Path, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(bases[1], tmp_path / "new"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    rows = [{"prompt": f"Text number {number}."} for number in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def run(old: Path, new: Path, data: Path) -> Callable[..., Any]:
    def call(**options: Any) -> Any:
        return rebase("brief", old, new, **{"data": data, "options": OPTIONS, "threads": 1, **options})

    return call


def test_the_new_pair_answers_more_like_the_old_one(run: Callable[..., Any], old: Path, new: Path) -> None:
    report = run()
    assert report.carried_kl is not None and report.carried_kl < report.base_kl
    assert report.kl < 0.8 * report.carried_kl
    assert (report.prompts, report.held_out, report.answer_tokens) == (36, 4, 40 * 12)
    assert report.directory == new / "adapters" / "brief"
    assert [one.problem for one in store.list_adapters(new)] == [None]

    def scores(model: Path, with_adapter: bool) -> Any:
        engine = Engine.load(model, threads=1)
        adapter = load_adapter(engine, model / "adapters" / "brief") if with_adapter else None
        return engine.score(list(range(40, 120)), adapter)

    wanted = scores(old, True)
    assert np.abs(scores(new, True) - wanted).mean() < 0.8 * np.abs(scores(new, False) - wanted).mean()


def test_the_record_keeps_the_task_and_tells_the_history(
    run: Callable[..., Any], old: Path, new: Path, data: Path
) -> None:
    report = run(options=replace(OPTIONS, passes=1))
    record = read_record(report.directory)
    assert record is not None and record.prompt is not None
    assert (record.task, record.license, record.prompt.instructions) == ("brief", "mit", INSTRUCTIONS)
    assert record.base_fingerprint == describe(new).fingerprint
    assert record.teacher_fingerprint == describe(old).fingerprint
    assert record.rebased_from is not None
    assert record.rebased_from["base_fingerprint"] == describe(old).fingerprint
    assert record.rebased_from["recipe"] == {"loss": "none, it is random"}
    assert record.data is not None and record.data[0]["rows"] == 36


def test_a_base_of_another_shape_begins_with_a_new_adapter(
    old: Path, data: Path, tmp_path: Path, run: Callable[..., Any]
) -> None:
    shape = replace(CONFIG, num_hidden_layers=1)
    other = random_model(shape, tmp_path / "other", seed=7, tokenizer_from=old)
    report = rebase("brief", old, other, data=data, options=OPTIONS, threads=1)
    assert report.carried_kl is None
    assert report.kl < report.base_kl
    assert [one.problem for one in store.list_adapters(other)] == [None]


def test_the_teacher_is_the_old_pair(old: Path, data: Path) -> None:
    """The network with the adapter on foretells what the engine with the adapter does."""
    prompts = read_prompts(data, INSTRUCTIONS)[:3]
    rows = write_answers(old, old / "adapters" / "brief", prompts, OPTIONS, threads=1)
    file = read_adapter(old / "adapters" / "brief", CONFIG, describe(old).fingerprint)
    network = Network.load(old)
    wear(network, values_of(file), 2.0)
    states = answer_states(network, rows)
    engine = Engine.load(old, threads=1)
    adapter = load_adapter(engine, old / "adapters" / "brief")
    for row, found_AD in zip(rows, states, strict=True):
        log_p = (found_AD.float() @ network.head_VD.float().t()).log_softmax(-1)
        answer = torch.from_numpy(row.ids[row.prompt :].astype(np.int64))
        foretold = log_p.gather(1, answer[:, None])[:, 0].numpy()
        scored = engine.score(row.ids.tolist(), adapter)[row.prompt - 1 :]
        assert np.abs(foretold - scored).max() < 0.1


def test_answers_do_not_depend_on_their_company(old: Path, data: Path) -> None:
    prompts = read_prompts(data, None)
    adapter = old / "adapters" / "brief"
    many = write_answers(old, adapter, prompts[:5], OPTIONS, threads=1)
    few = write_answers(old, adapter, prompts[:2], OPTIONS, threads=1)
    assert [row.ids.tolist() for row in many[:2]] == [row.ids.tolist() for row in few]
    batch = Batch.of(many)
    assert batch.ids.shape == (1, sum(row.tokens for row in many))
    assert [len(row.ids) - row.prompt for row in many] == batch.answers == [12] * 5


# --- prompts


def write_lines(path: Path, *rows: Any) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_prompts_end_with_the_users_turn_and_begin_with_the_tasks_instructions(tmp_path: Path) -> None:
    ask, say = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}
    own = {"role": "system", "content": "My own."}
    path = write_lines(
        tmp_path / "p.jsonl",
        {"messages": [ask, say], "license": "mit"},
        "",
        {"messages": [own, ask, say, ask]},
        {"prompt": "Hi"},
    )
    system = {"role": "system", "content": INSTRUCTIONS}
    assert read_prompts(path, INSTRUCTIONS) == [[system, ask], [own, ask, say, ask], [system, ask]]
    assert read_prompts(path, None)[0] == [ask]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "not valid JSON"),
        ({"text": "Hi"}, 'neither "messages"'),
        ({"messages": [{"role": "tool", "content": "x"}]}, 'neither "messages"'),
        ({"messages": [{"role": "user", "content": 3}]}, 'neither "messages"'),
        ({"messages": []}, "no turn of the user"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "no turn of the user"),
    ],
)
def test_a_line_that_is_no_prompt_is_named(tmp_path: Path, line: Any, problem: str) -> None:
    path = write_lines(tmp_path / "p.jsonl", {"prompt": "fine"}, line)
    with pytest.raises(PomonaError, match=f"line 2: .*{problem}"):
        read_prompts(path, None)


def test_one_prompt_is_too_few(tmp_path: Path) -> None:
    with pytest.raises(PomonaError, match="holds 1 prompts"):
        read_prompts(write_lines(tmp_path / "p.jsonl", {"prompt": "fine"}), None)


# --- what is refused


def test_what_does_not_belong_together_is_refused_before_any_work(
    run: Callable[..., Any], old: Path, new: Path, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(PomonaError, match="has no adapter fly"):
        rebase("fly", old, new, data=data)
    with pytest.raises(PomonaError, match="is the base of the adapter already"):
        rebase("brief", old, old, data=data, name="again")
    with pytest.raises(PomonaError, match="use pomona recover"):
        run(name="recovery")
    (new / "adapters" / "brief").mkdir(parents=True)
    with pytest.raises(PomonaError, match="is there already"):
        run()
    tokenizer = json.loads((new / "tokenizer.json").read_text())
    (new / "tokenizer.json").write_text(json.dumps({**tokenizer, "version": "1.1"}))
    with pytest.raises(PomonaError, match="has another tokenizer"):
        run(name="other")


def test_a_prompt_that_does_not_fit_is_told_by_its_number(old: Path) -> None:
    long = [[{"role": "user", "content": "x" * 600}], [{"role": "user", "content": "x"}]]
    with pytest.raises(PomonaError, match=r"prompt 1: has 6\d\d tokens, and with 12 .* context of 512"):
        write_answers(old, old / "adapters" / "brief", long, OPTIONS)
