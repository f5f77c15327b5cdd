"""Main content of HTML pages, by trafilatura, in a process that may be lost to a hostile page.

AFM_REPORT 2.2 step 1 joins Safari's reader mode with Boilerpipe. trafilatura does the like: its own rules
first, then those of readability and jusText where they find more.
"""

from __future__ import annotations

from typing import Any

from datatrove.data import Document
from datatrove.pipeline.extractors.base import ExtractorSandbox
from datatrove.pipeline.extractors.trafilatura import Trafilatura
from datatrove.pipeline.writers.jsonl import JsonlWriter

from pomona.data.pipeline.blocks import IS_PAGE, Documents
from pomona.data.pipeline.mathematics import count_tags
from pomona.data.pipeline.recipe import Extract


class ExtractContent(Trafilatura):  # type: ignore[misc]
    """Replaces a page by its main content; notes in `math_tags` how much mathematics its tags hold.

    Removed: extract_empty, extract_short, extract_timeout, extract_failed (the page broke the parser).
    """

    name = "extract"
    type = "filter"

    def __init__(self, settings: Extract, writer: JsonlWriter) -> None:
        super().__init__(
            favour_precision=settings.precision, deduplicate=settings.deduplicate, timeout=settings.seconds
        )
        self.min_characters, self.exclusion_writer = settings.min_characters, writer

    def run(self, data: Documents, rank: int = 0, world_size: int = 1) -> Documents:
        with self.exclusion_writer as writer, ExtractorSandbox(timeout=self.timeout) as sandbox:
            for doc in data:
                self.stat_update("total")
                with self.track_time():
                    reason = self._extract(doc, sandbox)
                if reason is None:
                    self.stat_update("forwarded")
                    self.update_doc_stats(doc)
                    yield doc
                else:
                    self.stat_update("dropped", f"dropped_{reason}")
                    doc.metadata["filter_reason"] = reason
                    writer.write(doc, rank)

    def _extract(self, doc: Document, sandbox: Any) -> str | None:
        """Why there is nothing to keep, or None."""
        if not doc.metadata.pop(IS_PAGE, False):
            return None
        try:
            text = sandbox.process_document(doc.text, self.extract) or ""
            text = text.encode("utf-8", "replace").decode()  # half a surrogate pair may come of an entity
        except TimeoutError:
            return "extract_timeout"
        except Exception:  # the process died of the page
            return "extract_failed"
        if not text.strip():
            return "extract_empty"
        if len(text) < self.min_characters:
            return "extract_short"
        if tags := count_tags(doc.text):
            doc.metadata["math_tags"] = tags
        doc.text = text
        return None
