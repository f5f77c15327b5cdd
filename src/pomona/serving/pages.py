"""The pages of `pomona serve`: static files under a policy that lets nothing else in.

Pages are plain HTML with one ES module each, served as they lie in web/; nothing is built and nothing comes
from elsewhere. What a model wrote reaches the document as text alone: the policy forbids scripts and styles
that are not files of ours, and Trusted Types make an assignment of markup an error.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from importlib.resources import files

from fastapi import FastAPI, Request
from fastapi.responses import Response

from pomona.compression.analysis_page import ANALYSIS, page_part
from pomona.serving import compare, compression, grading, writing

PAGES = ("index", "write", "chat", "adapters", "compression", "compare", "grade", "gradings")
TYPES = {".css": "text/css", ".js": "text/javascript", ".html": "text/html", ".svg": "image/svg+xml"}

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
HEADERS = {  # besides those that gate.py gives every reply
    "Content-Security-Policy": POLICY,
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "Cache-Control": "no-cache",  # asked for again by its tag, so that a new version shows at once
}
_MAIN = re.compile(r"<main>\n(.*)</main>", re.DOTALL)


@dataclass(frozen=True)
class WebFile:
    content: bytes
    media_type: str
    tag: str

    @classmethod
    def of(cls, name: str, text: str) -> WebFile:
        content = text.encode()
        media_type = TYPES["." + name.rpartition(".")[2]]
        return cls(content, f"{media_type}; charset=utf-8", f'"{hashlib.sha256(content).hexdigest()[:16]}"')

    def response(self, request: Request) -> Response:
        headers = {**HEADERS, "ETag": self.tag}
        if request.headers.get("if-none-match") == self.tag:
            return Response(status_code=304, headers=headers)
        return Response(self.content, media_type=self.media_type, headers=headers)


def web_files() -> dict[str, WebFile]:
    """Every file that is served, by its path. There is no other way from an address to a file."""
    found: dict[str, str] = {}
    for entry in files("pomona.serving").joinpath("web").iterdir():
        if "." + entry.name.rpartition(".")[2] in TYPES:
            found[entry.name] = entry.read_text(encoding="utf-8")
    # The analysis is the page of `pomona inspect --report`: the same parts, and the data over HTTP.
    found["compression.html"] = found["compression.html"].replace("<!-- analysis -->", analysis_part())
    found["analysis.css"] = page_part("page.css")
    found["analysis.js"] = "\n".join(page_part(name) for name in ANALYSIS) + "\nexport { begin };\n"
    paths = {f"/web/{name}": name for name in found if not name.endswith(".html")}
    paths |= {"/" if page == "index" else f"/{page}": f"{page}.html" for page in PAGES}
    return {path: WebFile.of(name, found[name]) for path, name in paths.items()}


def analysis_part() -> str:
    """The sections of the analysis's page, without its head, its title and its script."""
    match = _MAIN.search(page_part("page.html"))
    assert match is not None
    return match.group(1)


def add_pages(app: FastAPI) -> None:
    """The pages, and the endpoints that only they need."""
    for router in (writing.router, compare.router, compression.router, grading.router):
        app.include_router(router)
    for path, file in web_files().items():
        app.add_api_route(path, _sender(file), methods=["GET", "HEAD"], include_in_schema=False)


def _sender(file: WebFile) -> Callable[[Request], Awaitable[Response]]:
    async def send(request: Request) -> Response:
        return file.response(request)

    return send
