"""What must not leave the machine: secrets, pickles, links out of the folder, paths of this machine.

huggingface_hub uploads all of these without a word (2.4: a `.env` with a token, an `id_rsa`, files behind
links). Names and patterns are those of the issuers' documentation; nothing here judges a text's entropy,
because tokenizers are full of it.
"""

from __future__ import annotations

import fnmatch
import json
import re
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from lora_eval.records import SampleRow

_SECRET_NAMES = (
    ".env", ".env.*", "id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*", "*.pem", "*.key", "*.p12", "*.pfx",
    ".netrc", ".npmrc", ".pypirc", ".git-credentials", ".htpasswd", "credentials", "credentials.json",
    "stored_tokens", "*.keystore",
)  # fmt: skip
_SECRETS = {
    "a Hugging Face token": rb"\bhf_[A-Za-z0-9]{30,}\b",
    "an OpenAI or Anthropic key": rb"\bsk-(?:ant-|proj-|svcacct-)?[A-Za-z0-9_-]{32,}",
    "a GitHub token": rb"\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{50,})\b",
    "a GitLab token": rb"\bglpat-[A-Za-z0-9_-]{20,}",
    "an AWS access key": rb"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",
    "a Google API key": rb"\bAIza[A-Za-z0-9_-]{35}\b",
    "a Slack token": rb"\bxox[abprs]-[A-Za-z0-9-]{10,}",
    "an npm token": rb"\bnpm_[A-Za-z0-9]{36}\b",
    "a PyPI token": rb"\bpypi-AgEIcHlwaS5vcmc[A-Za-z0-9_-]{50,}",
    "a Weights & Biases key": rb"(?i:wandb_api_key)[\"' ]*[=:][\"' ]*[0-9a-f]{40}",
    "a private key": rb"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----",
}
_PATTERN = re.compile(b"|".join(b"(?P<p%d>%s)" % (n, pattern) for n, pattern in enumerate(_SECRETS.values())))
_BLOCK, _OVERLAP = 1 << 22, 512
_PICKLES = (
    "*.bin",
    "*.pt",
    "*.pth",
    "*.pkl",
    "*.pickle",
    "*.ckpt",
    "*.joblib",
    "*.dill",
    "*.npy",
    "*.msgpack",
)
_TEXTS = (".json", ".jsonl", ".yaml", ".yml", ".md", ".html", ".txt", ".csv")
_ROOTS = (
    "home", "root", "Users", "tmp", "var", "mnt", "media", "data", "workspace", "content", "opt", "private",
    "scratch", "srv", "work", "kaggle", "gpfs", "lustre",
)  # fmt: skip
# Not behind a word, a colon or another slash: `https://host/data/x` and `a/data/x` are no paths of ours.
ABSOLUTE_PATH = re.compile(
    rf"(?<![\w:/.~-])(?:/(?:{'|'.join(_ROOTS)})/[\w.@-]+[^\s\"'<>|,;)\]]*|[A-Za-z]:\\[\w.]+\\[^\s\"']*)"
)


def list_files(folder: Path) -> tuple[list[Path], list[str]]:
    """Return every file below a folder, sorted, without version control and caches; and what is refused: a
    link that leads out of the folder, or nowhere.
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
        elif path.is_file():
            found.append(path)
    return found, problems


def check_file(path: Path) -> Iterator[str]:
    """Yield why the file must not be uploaded: its name, a pickle, a secret in it."""
    if _fits(path.name, _SECRET_NAMES):
        yield f"{path}: by its name it holds a secret; remove it from the folder"
    if _fits(path.name, _PICKLES) or _is_pickle(path):
        yield f"{path}: a pickle runs code where it is opened; save weights as safetensors, and remove it"
        return
    yield from (f"{path}: {problem}" for problem in secrets_in(path))


def secrets_in(path: Path) -> Iterator[str]:
    """Yield what the file's bytes hold that looks like a secret; of safetensors only the header is read."""
    seen = set()
    with path.open("rb") as file:
        left = _header_bytes(path, file.read(8)) if path.suffix == ".safetensors" else None
        file.seek(0)
        before = b""
        while block := file.read(_BLOCK if left is None else min(_BLOCK, left)):
            left = None if left is None else left - len(block)
            for match in _PATTERN.finditer(before + block):
                seen.add(_name_of(match))
            before = (before + block)[-_OVERLAP:]
    yield from (f"holds {what}; remove it, and revoke it" for what in sorted(seen))


def secrets_in_rows(rows: Iterable[SampleRow]) -> Iterator[str]:
    """Yield what the rows' texts hold that looks like a secret: Parquet is compressed, its bytes hide it."""
    found = (
        _name_of(match)
        for row in rows
        for text in (row.prompt, row.output, row.target)
        for match in _PATTERN.finditer(text.encode())
    )
    yield from (f"holds {what}; remove it, and revoke it" for what in sorted(set(found)))


def local_paths(path: str, text: str) -> Iterator[str]:
    """Yield each path of this machine that a text file (JSON, YAML, Markdown, HTML) would give away."""
    if not path.endswith(_TEXTS) or Path(path).name in ("tokenizer.json", "vocab.json"):
        return
    for found in dict.fromkeys(_paths_in(path, text)):
        yield f"{path}: names {found}, a path of this machine"


def _paths_in(path: str, text: str) -> Iterator[str]:
    own = tuple(
        str(place) for place in (Path.home(), Path.cwd(), Path(tempfile.gettempdir())) if len(str(place)) > 3
    )
    texts = list(_strings(json.loads(text))) if path.endswith(".json") else [text]
    for part in texts:
        for match in ABSOLUTE_PATH.finditer(part):
            yield match.group()
        yield from (part for root in own if part.startswith(f"{root}/") and not ABSOLUTE_PATH.match(part))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield str(key)
            yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)


def _name_of(match: re.Match[bytes]) -> str:
    return list(_SECRETS)[int(str(match.lastgroup)[1:])]


def _fits(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(name.lower(), pattern) for pattern in patterns)


def _is_pickle(path: Path) -> bool:
    """By content: a pickle's first opcodes, or torch's archive of one."""
    with path.open("rb") as file:
        start = file.read(4)
        if start[:1] == b"\x80" and len(start) > 2 and start[1] in (2, 3, 4, 5):
            return True
        if start != b"PK\x03\x04":
            return False
    import zipfile

    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith((".pkl", "data.pkl")) for name in archive.namelist())
    except zipfile.BadZipFile:
        return False


def _header_bytes(path: Path, start: bytes) -> int:
    return min(path.stat().st_size, 8 + int.from_bytes(start, "little")) if len(start) == 8 else len(start)
