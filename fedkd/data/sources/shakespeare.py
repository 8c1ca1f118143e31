"""Shakespeare's plays."""

from __future__ import annotations

from pathlib import Path

from fedkd.data import cache
from fedkd.data.dataset import Corpus
from fedkd.data.reading import parsed
from fedkd.data.sources.texts import corpus_of, text_of, unreadable
from fedkd.errors import MissingData


def shakespeare(folder: Path | None, download: bool) -> Corpus:
    """Shakespeare's plays by speaking role: 37 plays, 1,347 roles (McMahan et al. 2017)."""
    file = (folder or cache.home()) / "shakespeare" / "shakespeare_by_role.json"
    if not file.is_file():
        raise MissingData(
            f"data set 'shakespeare' is not at {file}: point --data-dir (data.data_dir, "
            "FEDKD_DATA) at the folder that holds shakespeare/, with the JSON file {play: {role: "
            "[speech, ...]}}; or use data.dataset = 'pydoc'"
        )
    try:
        plays = parsed(text_of("shakespeare", file))
    except ValueError as error:
        raise unreadable("shakespeare", file, str(error)) from None
    texts: dict[str, str] = {}
    for play, roles in plays.items() if isinstance(plays, dict) else [("", None)]:
        for role, speeches in roles.items() if isinstance(roles, dict) else [("", None)]:
            if not isinstance(speeches, list) or not all(isinstance(s, str) for s in speeches):
                raise unreadable("shakespeare", file, "it must hold {play: {role: [speech, ...]}}")
            texts[f"{play}/{role}"] = "\n".join(speeches)
    return corpus_of("shakespeare", {key: text for key, text in texts.items() if text.strip()})
