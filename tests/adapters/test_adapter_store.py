"""The adapters of a model: listing, adding from everywhere, removing; nothing foreign comes along."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adapter_samples import adapter_for, edit_weights, peft_adapter, tiny_model
from safetensors.numpy import load_file, save_file

from pomona.adapters import store
from pomona.errors import PomonaError
from pomona.models.palettized import describe
from pomona.runtime.adapters import load_adapter
from pomona.runtime.engine import Engine
from pomona.runtime.model import Model


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def model(pristine: Path, tmp_path: Path) -> Path:
    """A tiny model without adapters."""
    return Path(shutil.copytree(pristine, tmp_path / "tiny"))


@pytest.fixture
def summarize(model: Path, tmp_path: Path) -> Path:
    """An adapter for it that lies elsewhere."""
    return adapter_for(model, tmp_path / "from" / "summarize")


def record_of(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / "pomona.json").read_text())
    return found


def left_over(model: Path) -> list[str]:
    folder = model / "adapters"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


# --- adding


def test_an_adapter_is_copied_with_its_own_files_alone(model: Path, summarize: Path) -> None:
    (summarize / "optimizer.pt").write_bytes(b"pickle")
    (summarize / "checkpoint-10").mkdir()
    (summarize / "LICENSE").write_text("licence")
    added = store.add(model, summarize)
    assert added.directory == model / "adapters" / "summarize"
    assert (added.name, added.rank, added.task, added.problem) == ("summarize", 4, "summarize", None)
    assert sorted(path.name for path in added.directory.iterdir()) == [
        "LICENSE",
        "adapter_config.json",
        "adapter_model.safetensors",
        "pomona.json",
    ]
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (added.directory / name).read_bytes() == (summarize / name).read_bytes()
    assert left_over(model) == ["summarize"]


def test_the_record_says_where_it_came_from_and_what_its_files_were(model: Path, summarize: Path) -> None:
    directory = store.add(model, summarize).directory
    record = record_of(directory)
    assert record["origin"] == {"kind": "directory", "source": "summarize"}
    assert record["license"] == "apache-2.0"
    assert record["sha256"] == {
        name: hashlib.sha256((directory / name).read_bytes()).hexdigest()
        for name in ("adapter_config.json", "adapter_model.safetensors")
    }


def test_what_was_added_runs(model: Path, summarize: Path) -> None:
    directory = store.add(model, summarize, name="recovery").directory
    engine = Engine.load(model, threads=1)
    adapter = load_adapter(engine, directory)
    ids = [1, 2, 3, 4, 5, 6]
    assert not np.allclose(engine.score(ids), engine.score(ids, adapter))


def test_another_base_is_refused_with_both_fingerprints(model: Path, tmp_path: Path) -> None:
    other = tiny_model(tmp_path / "other", seed=6)
    adapter = adapter_for(other, tmp_path / "theirs")
    with pytest.raises(PomonaError) as caught:
        store.add(model, adapter)
    assert describe(model).fingerprint in str(caught.value)
    assert describe(other).fingerprint in str(caught.value)
    assert str(adapter) in str(caught.value) and "partial" not in str(caught.value)
    assert left_over(model) == []


@pytest.mark.parametrize("record", [None, {"version": 1, "task": "reply", "license": "mit"}])
def test_an_adapter_that_names_no_base_needs_the_users_word(
    model: Path, tmp_path: Path, record: dict[str, Any] | None
) -> None:
    adapter = peft_adapter(tmp_path / "stranger", record=record)
    with pytest.raises(PomonaError, match=r"names its base; .*--base-unknown-ok"):
        store.add(model, adapter)
    assert left_over(model) == []
    written = record_of(store.add(model, adapter, base_unknown_ok=True).directory)
    assert written["base_fingerprint"] == describe(model).fingerprint
    assert written["origin"] == {
        "kind": "directory",
        "source": "stranger",
        "base": "on the user's word",
    }
    assert written.get("license") == (record or {}).get("license")


def test_the_users_word_stays_on_record_when_the_adapter_is_passed_on(model: Path, tmp_path: Path) -> None:
    first = store.add(model, peft_adapter(tmp_path / "stranger"), base_unknown_ok=True)
    second = store.add(model, first.directory, name="again")
    assert record_of(second.directory)["origin"]["base"] == "on the user's word"


@pytest.mark.parametrize("name", ["../up", "a/b", ".hidden", "", "..", "base", "x" * 65, "a b", "a\n"])
def test_names_cannot_lead_anywhere(model: Path, summarize: Path, name: str) -> None:
    with pytest.raises(PomonaError, match=r"choose another name|cannot be the name"):
        store.add(model, summarize, name=name)
    with pytest.raises(PomonaError):
        store.find(model, name)
    with pytest.raises(PomonaError):
        store.remove(model, name, force=True)


def test_a_name_that_is_taken_is_refused_unless_it_may_be_replaced(model: Path, summarize: Path) -> None:
    store.add(model, summarize)
    before = (model / "adapters" / "summarize" / "pomona.json").read_bytes()
    with pytest.raises(PomonaError, match="already exists"):
        store.add(model, summarize)
    edit_weights(summarize, float("nan"))
    with pytest.raises(PomonaError, match="not finite"):
        store.add(model, summarize, overwrite=True)
    assert (model / "adapters" / "summarize" / "pomona.json").read_bytes() == before
    edit_weights(summarize, 0.5)
    store.add(model, summarize, overwrite=True)
    assert (model / "adapters" / "summarize" / "pomona.json").read_bytes() != before


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3.4e38])  # the last overflows in bfloat16
def test_values_that_are_not_finite_are_refused(model: Path, summarize: Path, value: float) -> None:
    edit_weights(summarize, value)
    with pytest.raises(PomonaError, match=r"tensor 'model\.layers\.1.*' holds a value that is not finite"):
        store.add(model, summarize)
    assert left_over(model) == []


def test_shapes_and_ranks_are_checked(model: Path, summarize: Path) -> None:
    path = summarize / "adapter_model.safetensors"
    tensors = load_file(path)
    name = sorted(tensors)[0]
    save_file({**tensors, name: tensors[name][:, :-1].copy()}, path)
    with pytest.raises(PomonaError, match="needs a float matrix"):
        store.add(model, summarize)
    assert left_over(model) == []


@pytest.mark.parametrize(
    "name", ["adapter_config.json", "adapter_model.safetensors", "pomona.json", "LICENSE"]
)
def test_a_link_is_not_followed(model: Path, summarize: Path, tmp_path: Path, name: str) -> None:
    secret = tmp_path / "secret"
    if (summarize / name).exists():
        (summarize / name).rename(secret)
    else:
        secret.write_text("mine")
    (summarize / name).symlink_to(secret)
    with pytest.raises(PomonaError, match=f"{name}: is a link; give a directory with the file itself"):
        store.add(model, summarize)
    assert left_over(model) == []


def test_only_plain_files_of_a_sane_size_are_read(model: Path, summarize: Path) -> None:
    os.mkfifo(summarize / "NOTICE")
    with pytest.raises(PomonaError, match="NOTICE: is no plain file"):
        store.add(model, summarize)
    (summarize / "NOTICE").unlink()
    os.truncate(summarize / "adapter_model.safetensors", 1 << 30)
    with pytest.raises(PomonaError, match=r"has 1,073,741,824 bytes, such a file .* has at most"):
        store.add(model, summarize)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_directory_that_lacks_a_file_is_no_adapter(model: Path, summarize: Path, name: str) -> None:
    (summarize / name).unlink()
    with pytest.raises(PomonaError, match=f"{name}: is missing; give a PEFT directory"):
        store.add(model, summarize)


def test_an_unknown_key_of_the_record_is_refused(model: Path, summarize: Path) -> None:
    (summarize / "pomona.json").write_text(json.dumps({"base": "x"}))
    with pytest.raises(PomonaError, match=f"{summarize}.*unknown key 'base'"):
        store.add(model, summarize)


@pytest.mark.parametrize("source", ["", "no-such-place", "./nothing/here/at/all"])
def test_a_source_that_is_nothing_is_an_error(model: Path, source: str) -> None:
    with pytest.raises(PomonaError, match="is no adapter directory, zoo:NAME or hub id"):
        store.add(model, source)


# --- from the zoo and the hub


@pytest.fixture
def zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("POMONA_ZOO", str(tmp_path / "zoo"))
    (tmp_path / "zoo").mkdir()
    return tmp_path / "zoo"


def test_the_zoos_adapter_of_this_base_is_added(model: Path, zoo: Path) -> None:
    adapter_for(model, zoo / "small" / "recovery")
    added = store.add(model, "zoo:recovery")
    assert added.name == "recovery"
    assert record_of(added.directory)["origin"] == {"kind": "zoo", "source": "small/recovery"}


def test_the_zoos_adapter_of_another_base_is_refused(model: Path, zoo: Path, tmp_path: Path) -> None:
    other = tiny_model(tmp_path / "other", seed=6)
    adapter_for(other, zoo / "other" / "reply")
    adapter_for(model, zoo / "small" / "recovery")
    with pytest.raises(PomonaError) as caught:
        store.add(model, "zoo:reply")
    assert describe(model).fingerprint in str(caught.value)
    assert describe(other).fingerprint in str(caught.value)
    with pytest.raises(PomonaError, match=r"no such adapter \(for base .*: recovery\)"):
        store.add(model, "zoo:fly")


@pytest.fixture
def hub(summarize: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A snapshot in a hub cache, in which files are links to blobs; gives the snapshot's folder."""
    repository = tmp_path / "hub" / "models--org--lora"
    snapshot = repository / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for number, path in enumerate(sorted(summarize.iterdir())):
        path.rename(repository / "blobs" / str(number))
        (snapshot / path.name).symlink_to(Path("..") / ".." / "blobs" / str(number))

    def download(source: str, *, allow_patterns: list[str]) -> str:
        assert source == "org/lora"
        assert "adapter_model.safetensors" in allow_patterns and not any("bin" in p for p in allow_patterns)
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    return snapshot


def test_an_adapter_of_the_hub_is_added_with_its_revision(model: Path, hub: Path) -> None:
    added = store.add(model, "org/lora")
    assert added.name == "lora" and added.problem is None
    assert not any(path.is_symlink() for path in added.directory.iterdir())
    assert record_of(added.directory)["origin"] == {
        "kind": "hub",
        "source": "org/lora",
        "revision": "0123abcd",
    }


def test_a_link_out_of_the_hubs_cache_is_not_followed(model: Path, hub: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("mine")
    (hub / "LICENSE").symlink_to(tmp_path / "secret")
    with pytest.raises(PomonaError, match="LICENSE: is a link that leads elsewhere"):
        store.add(model, "org/lora")
    assert left_over(model) == []


# --- listing and removing


def test_a_model_lists_its_adapters_and_what_is_wrong_with_one(model: Path, summarize: Path) -> None:
    assert store.list_adapters(model) == []
    store.add(model, summarize)
    store.add(model, summarize, name="broken")
    (model / "adapters" / "broken" / "adapter_config.json").write_text("{}")
    (model / "adapters" / ".being-written").mkdir()
    broken, sound = store.list_adapters(model)
    assert (sound.model, sound.name, sound.task, sound.license) == (
        "tiny",
        "summarize",
        "summarize",
        "apache-2.0",
    )
    assert sound.problem is None and sound.bytes == sum(p.stat().st_size for p in sound.directory.iterdir())
    assert broken.rank is None and "peft_type" in str(broken.problem)


def test_the_runtime_does_not_take_half_written_folders_for_adapters(model: Path, summarize: Path) -> None:
    store.add(model, summarize)
    (model / "adapters" / ".summarize.partial-00").mkdir()
    engine = Engine.load(model, threads=1)
    with Model(engine, None) as loaded:  # type: ignore[arg-type]
        assert [status.name for status in loaded.adapters.status()] == ["summarize"]


def test_an_adapter_is_removed(model: Path, summarize: Path) -> None:
    store.add(model, summarize)
    assert store.remove(model, "summarize") == model / "adapters" / "summarize"
    assert left_over(model) == []
    with pytest.raises(PomonaError, match=r"has no adapter summarize \(there: none\)"):
        store.remove(model, "summarize")


def test_the_recovery_adapter_is_removed_by_force_alone(model: Path, summarize: Path) -> None:
    store.add(model, summarize, name="recovery")
    with pytest.raises(PomonaError, match="give --force"):
        store.remove(model, "recovery")
    assert left_over(model) == ["recovery"]
    store.remove(model, "recovery", force=True)
    assert left_over(model) == []


def test_of_a_link_the_link_alone_is_removed(model: Path, summarize: Path) -> None:
    (model / "adapters").mkdir()
    (model / "adapters" / "linked").symlink_to(summarize)
    store.remove(model, "linked")
    assert left_over(model) == [] and (summarize / "pomona.json").is_file()


def test_a_folder_that_is_no_adapter_is_not_removed(model: Path) -> None:
    (model / "adapters" / "notes").mkdir(parents=True)
    (model / "adapters" / "notes" / "diary.txt").write_text("dear diary")
    with pytest.raises(PomonaError, match="is no adapter"):
        store.remove(model, "notes")
    assert left_over(model) == ["notes"]
