"""Python's language reference."""

from __future__ import annotations

import platform
import re
from pathlib import Path

from fedkd.data.dataset import Corpus
from fedkd.data.sources.texts import corpus_of
from fedkd.errors import FedkdError


def pydoc(folder: Path | None, download: bool) -> Corpus:
    """Python's language reference, that comes with CPython: some 80 topics; no download.

    What stands in several topics is left in the shortest of them, and lines without a letter or
    digit (underlines, rulers of tables) are left out. The text is that of the Python that runs.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise FedkdError(
            "data set 'pydoc' is the language reference that comes with CPython (pydoc_data), and "
            f"this {platform.python_implementation()} {platform.python_version()} has none: use "
            "data.dataset = 'text:PATH' or 'jsonl:FILE'"
        ) from error
    seen: set[str] = set()
    kept: dict[str, str] = {}
    for topic in sorted(topics, key=lambda topic: (len(topics[topic]), topic)):
        paragraphs = []
        for paragraph in re.split(r"\n\s*\n", topics[topic]):
            text = "\n".join(line for line in paragraph.splitlines() if any(map(str.isalnum, line)))
            if text not in seen:
                seen.add(text)
                paragraphs.append(text)
        kept[topic] = "\n".join(paragraphs)
    return corpus_of("pydoc", {topic: kept[topic] for topic in sorted(kept) if kept[topic].strip()})
