"""A judge that our own engine opens, so that judging needs no server, no account and no network."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_eval.protocols import Progress

if TYPE_CHECKING:
    from lora_eval.judges.local import LocalJudge


def local_name(path: str) -> str:
    """Return the model's name for records: its folder's, and what identifies its weights."""
    from lora_eval.fingerprint import fingerprint_folder
    from lora_eval.judges.profiles import LOCAL
    from lora_eval.models import resolve_model

    folder = resolve_model(path)
    return f"{LOCAL}{folder.name}@{fingerprint_folder(folder).removeprefix('sha256:')[:12]}"


def open_judge(path: str, name: str, progress: Progress) -> LocalJudge:
    """Return the judge, opened.

    Raises:
        ModelError: the folder is no model.
    """
    from lora_eval.evaluate import FolderArm
    from lora_eval.evaluate.scorers import Scorers
    from lora_eval.judges.local import LocalJudge
    from lora_eval.models import resolve_model

    folder = resolve_model(path)
    scorer = Scorers("transformers", progress).folder(FolderArm("judge", "base", folder), "auto")
    return LocalJudge(scorer.engine, name)
