"""The pages as files: what is served and how, and what a policy forbids has no place in them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from starlette.testclient import TestClient
from tiny_model import tiny_model

from pomona.compression.compress import compress
from pomona.runtime.model import Model
from pomona.runtime.scheduler import Request
from pomona.serving.app import create_app
from pomona.serving.pages import PAGES, web_files
from pomona.serving.settings import ServerSettings

WEB = Path(__file__).parents[2] / "src" / "pomona" / "serving" / "web"
KEY = "a key of some length"


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("pages"))


@pytest.fixture(scope="module")
def client(model_dir: Path) -> Iterator[TestClient]:
    with Model.load(str(model_dir), threads=1) as model:
        app = create_app(model, ServerSettings(api_key=KEY))  # type: ignore[arg-type]
        with TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False) as opened:
            yield opened


class Elements(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_pages_and_their_files_come_without_a_key_and_with_the_policy(client: TestClient) -> None:
    paths = list(web_files())
    assert {"/", "/write", "/compare", "/web/site.css", "/web/analysis.js"} <= set(paths) and len(paths) > 15
    for path in paths:
        reply = client.get(path)
        assert reply.status_code == 200 and reply.content, path
        policy = dict(part.split(" ", 1) for part in reply.headers["content-security-policy"].split("; "))
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
        assert policy["require-trusted-types-for"] == "'script'"
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["referrer-policy"] == "no-referrer"
        assert "set-cookie" not in reply.headers
    assert client.get("/v1/models").status_code == 401


def test_a_file_is_sent_again_only_when_it_changed(client: TestClient) -> None:
    first = client.get("/web/site.css")
    again = client.get("/web/site.css", headers={"If-None-Match": first.headers["etag"]})
    assert again.status_code == 304 and not again.content
    assert client.get("/web/write.js").headers["etag"] != first.headers["etag"]
    assert client.head("/write").status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/web/",
        "/web/../pages.py",
        "/web/%2e%2e/pages.py",
        "/web/..%2fpages.py",
        "/web/write.html",
        "/web/x.js",
    ],
)
def test_no_other_file_can_be_reached(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 404


@pytest.mark.parametrize("page", PAGES)
def test_a_page_holds_no_script_no_style_and_nothing_from_elsewhere(client: TestClient, page: str) -> None:
    text = client.get("/" if page == "index" else f"/{page}").text
    elements = Elements(text)
    assert len(elements.tags) > 20
    served = set(web_files())
    for tag, attributes in elements.tags:
        assert tag not in {"style", "img", "iframe", "object", "embed", "base"}
        if tag == "script":
            assert attributes["type"] == "module" and attributes["src"] == f"/web/{page}.js"
        for name, value in attributes.items():
            assert name != "style" and not name.startswith("on"), (tag, name)
            if name in ("src", "href") and value is not None and value != "/openapi.json":
                assert value.startswith("#") or value in served, (tag, value)
    assert elements.tags[0] == ("html", {"lang": "en"})
    assert [tag for tag, _ in elements.tags].count("h1") == 1
    ids = [attributes["id"] for _, attributes in elements.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert not re.search(r"<script[^>]*>[^<]", text)


def test_modules_use_only_each_other_and_put_in_texts_as_text() -> None:
    served = set(web_files())
    modules = sorted(WEB.glob("*.js"))
    assert len(modules) > 10
    for path in modules:
        code = path.read_text(encoding="utf-8")
        for target in re.findall(r'(?:from|import)\s*\(?\s*"([^"]+)"', code):
            assert target.startswith("./") and f"/web/{target[2:]}" in served, (path.name, target)
        for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "DOMParser"):
            assert word not in code, (path.name, word)
        for word in ("new Function", "createContextualFragment", "srcdoc", "http://", "https://", "cookie"):
            assert word not in code.replace("http://www.w3.org/2000/svg", ""), (path.name, word)


def test_ids_that_a_module_asks_for_are_on_its_page(client: TestClient) -> None:
    made = {"served", "site-theme"}  # by site.js
    for page in PAGES:
        code = (WEB / f"{page}.js").read_text(encoding="utf-8")
        ids = set(re.findall(r'\$\("([\w-]+)"\)', code))
        text = client.get("/" if page == "index" else f"/{page}").text
        assert ids, page
        assert {name for name in ids - made if f'id="{name}"' not in text} == set(), page


def test_the_analysis_is_that_of_inspect(client: TestClient) -> None:
    page = client.get("/compression").text
    for name in ("budget", "map", "tensors", "export", "how"):
        assert f'id="{name}"' in page
    script = client.get("/web/analysis.js").text
    assert "function solve(" in script and script.rstrip().endswith("export { begin };")
    assert "beginAlone" not in script


def node(code: str) -> str:
    program = shutil.which("node")
    if program is None:
        pytest.skip("node is not installed")
    done = subprocess.run(
        [program, "--input-type=module", "-e", code], capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout


def test_texts_are_read_out_of_json_that_is_being_written() -> None:
    whole = json.dumps({"questions": [], "replies": ['Say "yes"', "né\n", "C"]})
    code = f"""
      import {{ partialTexts }} from {json.dumps((WEB / "partial_json.js").as_uri())};
      const whole = {json.dumps(whole)};
      console.log(JSON.stringify(Array.from(whole, (_, i) => partialTexts(whole.slice(0, i + 1)))));
    """
    steps = json.loads(node(code))
    assert steps[-1] == ['Say "yes"', "né\n", "C"]
    final = steps[-1]
    keys = {"questions"[: n + 1] for n in range(9)} | {"replies"[: n + 1] for n in range(7)}
    for texts in steps:  # what is there is a beginning of what will be there, or a key that is not ended
        for place, text in enumerate(texts):
            assert (place < len(final) and final[place].startswith(text)) or text in keys
    assert ['Say "ye'] in steps


# --- GET /v1/compression


def test_a_model_that_was_not_compressed_has_no_analysis(client: TestClient) -> None:
    reply = client.get("/v1/compression", headers={"Authorization": f"Bearer {KEY}"})
    assert reply.status_code == 404 and reply.json()["error"]["code"] == "no_compression_report"


@pytest.fixture(scope="module")
def packed(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    target = tmp_path_factory.mktemp("packed") / "packed"
    compress(model_dir, target, calibration="none", table_columns=64)
    with Model.load(str(target), threads=1) as model:
        yield model


def test_the_analysis_is_measured_once_and_again_on_request(
    packed: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pomona.serving import compression

    asked: list[int] = []
    measure = compression.measure_decoding

    def counted(*args: object, **options: object) -> object:
        asked.append(1)
        return measure(*args, **{**options, "patience": 0.0})  # type: ignore[arg-type]

    monkeypatch.setattr(compression, "measure_decoding", counted)
    app = create_app(packed, ServerSettings())
    with TestClient(app, base_url="http://127.0.0.1") as client:
        first = client.get("/v1/compression").json()
        assert first["model"] == "packed" and first["fingerprint"] == packed.engine.fingerprint
        assert first["time"]["token_ns"] > 0 and {"model.layers.0.self_attn.q_proj"} <= {
            module["name"] for module in first["modules"]
        }
        assert client.get("/v1/compression").json() == first and len(asked) == 1
        assert client.get("/v1/compression?again=true").status_code == 200 and len(asked) == 2
        # Beside answers nothing is measured: their time would be told as the model's.
        ticket = packed.scheduler.submit(
            Request(prompt_ids=(1, 2, 3), max_new_tokens=3000, stop_ids=frozenset())
        )
        busy = client.get("/v1/compression?again=true")
        ticket.cancel()
        assert busy.status_code == 503 and busy.headers["retry-after"] and len(asked) == 2
        assert client.get("/v1/compression").status_code == 200
