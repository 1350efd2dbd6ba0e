"""What must not leave the machine: secrets, pickles, archives, links out of the folder, paths of its own.

huggingface_hub uploads all of these without a word (2.4, measured).
"""

from __future__ import annotations

import fnmatch
import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lora_eval.publish.secrets import is_secret_name, secrets_in

_PICKLES = (
    "*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.ckpt", "*.joblib", "*.dill", "*.npy", "*.msgpack",
)  # fmt: skip
# What loaders take from the top of a repository without being asked.
_LOADED = (
    *_PICKLES, "*.safetensors", "*.gguf", "*.py", "*config.json", "*.index.json", "tokenizer*", "*.model",
    "vocab.json", "merges.txt", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
)  # fmt: skip
# First bytes of what only an unpacker can look into.
_ARCHIVES = (b"PK\x03\x04", b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd", b"7z\xbc\xaf\x27\x1c")
_TEXTS = (
    ".json",
    ".jsonl",
    ".yaml",
    ".yml",
    ".md",
    ".html",
    ".txt",
    ".csv",
    ".svg",
    ".log",
    ".toml",
    ".ipynb",
)
_MOST_TEXT = 1 << 28  # bytes; nothing larger is a text that people wrote
_ROOTS = (
    "home", "root", "Users", "Volumes", "tmp", "var", "mnt", "media", "data", "workspace", "content", "opt",
    "private", "scratch", "pscratch", "srv", "work", "kaggle", "gpfs", "lustre", "beegfs", "ceph", "fsx",
    "nfs", "net", "export", "cluster", "storage", "raid", "ssd", "nvme", "local", "shared", "share",
    "project", "projects", "proj", "dev/shm", "app", "usr", "etc", "run", "dbfs", "notebooks", "datasets",
    "models", "checkpoints",
)  # fmt: skip
# Not behind a word or another slash: `https://host/data/x` and `a/data/x` are no paths of ours.
_UNIX = rf"(?<![\w/.~-])/(?:{'|'.join(_ROOTS)})/[\w.@+-]+[^\s\"'<>`|,;)\]}}]*"
_WINDOWS = r"(?<![A-Za-z0-9])[A-Za-z]:(?:\\{1,2}|/)[\w. -]+(?:\\{1,2}|/)[^\s\"'<>`]*"
_SHARE = r"(?<![\w\\])\\\\[A-Za-z][\w.-]+\\[A-Za-z][\w$.-]*[^\s\"'<>`]*"
ABSOLUTE_PATH = re.compile(rf"file:/[^\s\"'<>`]+|{_UNIX}|{_WINDOWS}|{_SHARE}")
_WHOLE = re.compile(r"/[\w.@+-]+(?:/[\w.@+-]+)+/?")
# Elsewhere `A:\nyes\n` is no drive but an answer: in chat templates, and where `\n` stands for a line end.
_DRIVE = re.compile(
    r"[A-Za-z]:\\{1,2}(?:users|documents|windows|program|temp|tmp|data|home|dev|work|projects|models|src)",
    re.IGNORECASE,
)
_TEMPLATE = re.compile(r"\{[{%]")


def list_files(folder: Path) -> tuple[list[Path], list[str]]:
    """Return every file below a folder, sorted, without version control and caches; and what is refused: a
    link that leads out of the folder, to another folder, or nowhere.
    """
    found, problems = [], []
    home = folder.resolve()
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if ".git" in parts or ".cache" in parts or "__pycache__" in parts:
            continue
        if path.is_symlink() and not path.resolve().is_relative_to(home):
            problems.append(
                f"{path}: a link out of the folder, to {path.resolve()}; put the file itself there"
            )
        elif path.is_symlink() and not path.exists():
            problems.append(f"{path}: a link to nothing; remove it")
        elif path.is_symlink() and path.is_dir():
            problems.append(f"{path}: a link to a folder; put the folder itself there")
        elif path.is_file():
            found.append(path)
    return found, problems


def check_file(path: Path) -> Iterator[str]:
    """Yield why the file must not be uploaded: its name, a pickle, an archive, a secret in it."""
    if is_secret_name(path):
        yield f"{path}: by its name it holds a secret; remove it from the folder"
    named = any(fnmatch.fnmatchcase(path.name.lower(), pattern) for pattern in _PICKLES)
    if named or _is_pickle(path):
        yield f"{path}: a pickle runs code where it is opened; save weights as safetensors, and remove it"
    elif _is_archive(path):
        yield f"{path}: an archive, in which nobody looks for secrets and pickles; unpack it, or remove it"
    else:
        yield from (f"{path}: {problem}" for problem in secrets_in(path))


def is_loaded(path: str) -> bool:
    """Whether a file of a repository is loaded with its model: weights, settings, tokenizer, code."""
    return "/" not in path and any(fnmatch.fnmatchcase(path.lower(), pattern) for pattern in _LOADED)


def is_text(path: str, size: int) -> bool:
    """Whether a file's texts are looked at for paths."""
    return path.lower().endswith(_TEXTS) and size <= _MOST_TEXT


def local_paths(path: str, text: str) -> Iterator[str]:
    """Yield each path of this machine that a text file (JSON, YAML, Markdown, HTML) would give away."""
    name = path.lower()
    texts = list(_strings(path, text)) if name.endswith(".json") else [text]
    escapes = name.endswith((".html", ".jsonl", ".ipynb", ".yaml", ".yml"))
    for found in dict.fromkeys(found for part in texts for found in _paths_in(part, escapes=escapes)):
        yield f"{path}: names {found}, a path of this machine"


def header_paths(path: str, file: Path) -> Iterator[str]:
    """Yield each path of this machine that stands in the metadata of a file of weights."""
    with file.open("rb") as weights:
        length = int.from_bytes(weights.read(8), "little")
        header = weights.read(min(length, _MOST_TEXT))
    try:
        metadata = json.loads(header).get("__metadata__", {})
    except (ValueError, AttributeError):
        return  # whoever loads it is told more
    for found in dict.fromkeys(
        found for text in _leaves(metadata) for found in _paths_in(text, escapes=False)
    ):
        yield f"{path}: its metadata names {found}, a path of this machine"


def _paths_in(text: str, *, escapes: bool) -> Iterator[str]:
    """`escapes` says that a backslash may begin an escape sequence in this text."""
    escapes = escapes or _TEMPLATE.search(text) is not None
    for match in ABSOLUTE_PATH.finditer(text):
        if not escapes or "\\" not in match.group() or _DRIVE.match(match.group()):
            yield match.group()
    if _WHOLE.fullmatch(text) and not ABSOLUTE_PATH.match(text):
        yield text
    for place in (Path.home(), Path.cwd(), Path(tempfile.gettempdir())):
        own = re.compile(rf"(?<![\w/.~]){re.escape(str(place))}/[^\s\"'<>`]*")
        if len(str(place)) > 3:
            yield from (
                match.group() for match in own.finditer(text) if not ABSOLUTE_PATH.match(match.group())
            )


def _strings(path: str, text: str) -> Iterator[str]:
    try:
        data = json.loads(text)
    except ValueError:
        yield text
        return
    if Path(path).name in ("tokenizer.json", "vocab.json") and isinstance(data, dict):
        # Tokens are words, and some vocabularies hold `/home/` and the like.
        data = {
            key: value for key, value in data.items() if key in ("post_processor", "truncation", "padding")
        }
    yield from _leaves(data)


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield str(key)
            yield from _leaves(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(inner)


def _is_archive(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(262)
    return start.startswith(_ARCHIVES) or start[257:262] == b"ustar"


def _is_pickle(path: Path) -> bool:
    """By content: a pickle of any protocol that calls something, or torch's archive of one."""
    with path.open("rb") as file:
        start = file.read(9)
    if start[8:] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size:
        return False  # safetensors: the length of its header may begin like a pickle
    if start[:1] == b"\x80" and len(start) > 2 and start[1] in (2, 3, 4, 5):
        return True
    return _names_pickle(path) if start.startswith(b"PK\x03\x04") else _is_old_pickle(path)


def _names_pickle(path: Path) -> bool:
    import zipfile

    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.lower().endswith((".pkl", ".pickle")) for name in archive.namelist())
    except zipfile.BadZipFile:
        return False


def _is_old_pickle(path: Path) -> bool:
    """Protocols 0 and 1 have no first byte of their own: it must parse up to its end, and name a callable."""
    import pickletools
    import warnings

    named = False
    try:
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escape sequences in what is no pickle
            for opcode, argument, _ in pickletools.genops(file):
                named |= opcode.name in ("GLOBAL", "INST") and bool(
                    re.fullmatch(r"[\w.]+ [\w.]+", str(argument))
                )
    except (ValueError, OverflowError, UnicodeDecodeError):
        return False
    return named
