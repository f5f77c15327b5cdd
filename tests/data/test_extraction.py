"""Main content: the article stays, menus and footers go; broken and hostile pages go too, with a reason."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

pytest.importorskip("datatrove")
pytest.importorskip("trafilatura")

from pipeline_samples import prose, public_data, recipe, rows_below

from pomona.data.pipeline.run import run_recipe

ARTICLE = prose(random.Random(11), 15)
PAGE = """<html><head><title>T</title><script>track()</script></head><body>
<nav><ul><li><a href="/">Home</a></li><li><a href="/shop">Shop our offers</a></li></ul></nav>
<div class="cookie">We use cookies to improve your experience.</div>
<article><h1>The winter</h1>{}</article>
<footer>Copyright 2024 Example Ltd. All rights reserved. <a href="/imprint">Imprint</a></footer>
</body></html>"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pages")
    pages = root / "pages"
    pages.mkdir()
    paragraphs = "".join(f"<p>{line}</p>" for line in ARTICLE.split("\n"))
    (pages / "good.html").write_text(PAGE.format(paragraphs))
    (pages / "math.html").write_text(PAGE.format(paragraphs + "<math><mi>x</mi></math>" * 4))
    latin = PAGE.replace("<title>", '<meta charset="latin1"><title>').format(paragraphs)
    (pages / "latin.html").write_bytes(latin.replace("winter", "h\xf4tel").encode("latin-1"))
    (pages / "unclosed.html").write_text(
        PAGE.format(paragraphs).replace("</p>", "").replace("</div>", "")[:-40]
    )
    (pages / "invalid.html").write_bytes(
        PAGE.format(paragraphs).encode().replace(b"Home", b"H\xff\xfe\x00me")
    )
    (pages / "nothing.html").write_text("<html><body><nav>Menu</nav></body></html>")
    (pages / "garbage.html").write_bytes(bytes(range(256)) * 40)
    (pages / "deep.html").write_text("<div>" * 30_000 + "x")
    (pages / "empty.html").touch()
    (pages / "surrogate.html").write_text(PAGE.format(paragraphs + "<p>&#xD800; and &#55357; in it.</p>"))
    inputs = [{"name": "pages", "path": str(pages), "kind": "html"}]
    run_recipe(recipe(inputs, [{"extract": {}}]), root, root / "run")
    return root / "run"


def test_the_article_stays_and_what_surrounds_it_goes(run: Path) -> None:
    texts = {row["id"]: row["text"] for row in rows_below(run / "documents")}
    for name in ("good", "math", "latin", "unclosed", "invalid"):
        text = texts[f"pages/{name}.html"]
        lines = ARTICLE.replace("winter", "hôtel") if name == "latin" else ARTICLE
        assert all(line in text for line in lines.split("\n")[:3]), name
        for foul in ("Shop our offers", "cookies", "All rights reserved", "track()", "<p>"):
            assert foul not in text, name
    assert "hôtel" in texts["pages/latin.html"]


def test_mathematics_in_the_page_is_noted(run: Path) -> None:
    tags = {row["id"]: row["metadata"].get("math_tags", 0) for row in rows_below(run / "documents")}
    assert tags["pages/math.html"] >= 4 and tags["pages/good.html"] == 0


def test_pages_without_content_are_written_down_with_the_reason(run: Path) -> None:
    removed = {row["id"]: row["metadata"]["filter_reason"] for row in rows_below(run / "removed")}
    assert removed["pages/nothing.html"] in ("extract_empty", "extract_short")
    assert removed["pages/empty.html/0"] == "empty"
    assert removed["pages/garbage.html"].startswith("extract_")
    kept = {row["id"] for row in rows_below(run / "documents")}
    assert len(kept) + len(removed) == 10 and "pages/deep.html" in kept | set(removed)


def test_documents_that_are_no_pages_pass(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Plain <b>text</b> & more.")
    inputs = [{"name": "notes", "path": "a.txt", "kind": "text"}]
    run_recipe(recipe(inputs, ["extract"]), tmp_path, tmp_path / "run")
    [row] = rows_below(tmp_path / "run" / "documents")
    assert row["text"] == "Plain <b>text</b> & more." and row["metadata"] == {"source": "notes"}


@pytest.mark.data
def test_real_pages_keep_what_they_must_and_lose_what_they_must_not_have(tmp_path: Path) -> None:
    folder = public_data() / "html_trafilatura"
    inputs = [{"name": "pages", "path": str(folder / "cache"), "kind": "html"}]
    run_recipe(recipe(inputs, ["extract"]), tmp_path, tmp_path / "run")
    texts = {row["id"].partition("/")[2]: row["text"] for row in rows_below(tmp_path / "run" / "documents")}
    truth = {page["file"]: page for page in json.loads((folder / "evaldata.json").read_text()).values()}
    assert len(texts) == 10 and set(texts) <= set(truth)
    wanted = [phrase in texts[name] for name in texts for phrase in truth[name]["with"]]
    unwanted = [phrase in texts[name] for name in texts for phrase in truth[name]["without"]]
    assert sum(wanted) / len(wanted) > 0.8 and sum(unwanted) / len(unwanted) < 0.2
