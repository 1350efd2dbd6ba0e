"""Secrets in files and rows: patterns of the issuers' own documentation, and names that keys have.

huggingface_hub looks for none (2.4: a `.env` with a token and an `id_rsa` were published). Nothing here
judges a text's entropy, because tokenizers are full of it.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from lora_eval.records import SampleRow

_NAMES = (
    ".env", ".env.*", "*.env", ".envrc", "id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*", "*.pem", "*.key",
    "*.p12", "*.pfx", "*.ppk", "*.jks", "*.kdbx", "*.keystore", ".netrc", "_netrc", ".npmrc", ".pypirc",
    ".pgpass", ".git-credentials", ".htpasswd", ".dockercfg", ".vault-token", "kubeconfig", "credentials",
    "credentials.json", "secrets.*", "stored_tokens",
)  # fmt: skip
_QUOTED = rb"[\"' ]*[=:][\"' ]*"
_SECRETS = {
    "a Hugging Face token": rb"(?:hf_|api_org_)[A-Za-z0-9]{30,}",
    "an OpenAI, Anthropic or OpenRouter key": rb"sk-(?=[A-Za-z_-]*\d)(?:ant-|proj-|svcacct-|or-)?[\w-]{32,}",
    "a GitHub token": rb"(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_\w{50,})",
    "a GitLab token": rb"glpat-[\w-]{20,}",
    "an AWS access key": rb"(?:AKIA|ASIA)[A-Z0-9]{16}(?![A-Z0-9])",
    "an AWS secret key": rb"(?i:aws_?secret_?access_?key)" + _QUOTED + rb"[A-Za-z0-9/+]{40}",
    "an Azure account key": rb"AccountKey=[A-Za-z0-9+/]{60,}=",
    "a Google key": rb"(?:AIza[\w-]{35}|GOCSPX-[\w-]{20,})",
    "a Slack token": rb"(?:xox[abeprs]-[A-Za-z0-9-]{10,}|hooks\.slack\.com/services/T\w+/B\w+/\w{20,})",
    "an npm token": rb"npm_[A-Za-z0-9]{36}",
    "a PyPI token": rb"pypi-AgEIcHlwaS5vcmc[\w-]{50,}",
    "a Weights & Biases key": rb"(?:(?i:wandb_api_key)" + _QUOTED + rb"[0-9a-f]{40}|wandb_v1_\w{40,})",
    "a Replicate, Groq, xAI or Perplexity key": rb"(?:r8_|gsk_|xai-|pplx-)[A-Za-z0-9]{36,}",
    "a Databricks or DigitalOcean token": rb"(?:dapi[0-9a-f]{32}|do[opr]_v1_[0-9a-f]{64})",
    "a Stripe key": rb"[sr]k_live_[A-Za-z0-9]{20,}",
    "a SendGrid key": rb"SG\.[\w-]{22}\.[\w-]{43}",
    "a signed web token": rb"eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}",
    "a password in an address": rb"[a-z][a-z0-9+.-]{1,20}://[^\s/:@\"'<>]{1,64}:[^\s/:@\"'<>]{6,}@[\w.-]+",
    "a login of a .netrc": rb"machine\s+\S+\s+login\s+\S+\s+password\s+\S+",
    "a key or password": rb"(?i:(?:api|secret|access)_?key|client_?secret|(?:access|auth|refresh)_?token|"
    rb"passw(?:or)?d)[\"']?\s*[=:]\s*[\"'](?=[^\"'\s]*\d)[^\"'\s]{16,}[\"']",
    "a private key": rb"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----",
}
# Not behind a letter or digit: a token behind `_` is one all the same.
_PATTERN = re.compile(
    rb"(?<![A-Za-z0-9])(?:"
    + b"|".join(b"(?P<p%d>%s)" % (n, pattern) for n, pattern in enumerate(_SECRETS.values()))
    + b")"
)
# In JSON a token may stand behind `\n`, or be written with `\u0068` for its `h`.
_ESCAPE = re.compile(rb"\\(?:u00([2-7][0-9a-fA-F])|[nrtbf\"/])")
_BLOCK, _OVERLAP = 1 << 22, 512


def is_secret_name(path: Path) -> bool:
    """Whether files of this name hold secrets by convention (`.env`, `id_rsa`)."""
    return any(fnmatch.fnmatchcase(path.name.lower(), pattern) for pattern in _NAMES)


def secrets_in(path: Path) -> Iterator[str]:
    """Yield what the file holds that looks like a secret: in its bytes, of safetensors in the header, of
    Parquet in the values.
    """
    with path.open("rb") as file:
        start = file.read(8)
        file.seek(0)
        if start.startswith(b"PAR1"):
            found = _in_texts(_parquet_texts(path))
        else:
            left = _header_bytes(path, start) if path.suffix == ".safetensors" else path.stat().st_size
            found = _in_blocks(file, left, wide=start[:2] in (b"\xff\xfe", b"\xfe\xff"))
    yield from _told(found)


def secrets_in_bytes(data: bytes) -> Iterator[str]:
    """Yield what a text that we write holds that looks like a secret."""
    yield from _told(_names_in(data))


def secrets_in_rows(rows: Iterable[SampleRow]) -> Iterator[str]:
    """Yield what the rows' texts hold that looks like a secret: Parquet is compressed, its bytes hide it."""
    yield from _told(_in_texts(text for row in rows for text in (row.prompt, row.output, row.target)))


def _in_blocks(file: Any, left: int, *, wide: bool) -> set[str]:
    """`wide` says that every other byte is 0 (UTF-16)."""
    seen: set[str] = set()
    before = b""
    while block := file.read(min(_BLOCK, left)):
        left -= len(block)
        before += block.replace(b"\0", b"") if wide else block
        seen |= _names_in(before)
        before = before[-_OVERLAP:]
    return seen


def _in_texts(texts: Iterable[str]) -> set[str]:
    return {name for text in texts for name in _names_in(text.encode("utf-8", "replace"))}


def _names_in(data: bytes) -> set[str]:
    if b"\\" in data:
        data = _ESCAPE.sub(_unescaped, data)
    return {list(_SECRETS)[int(str(match.lastgroup)[1:])] for match in _PATTERN.finditer(data)}


def _unescaped(match: re.Match[bytes]) -> bytes:
    if match[1]:
        return bytes([int(match[1], 16)])
    return b'"' if match[0] == b'\\"' else b"/" if match[0] == b"\\/" else b"\n"


def _told(names: set[str]) -> Iterator[str]:
    yield from (f"holds {what}; remove it, and revoke it" for what in sorted(names))


def _parquet_texts(path: Path) -> Iterator[str]:
    import pyarrow
    from pyarrow import parquet

    try:
        for batch in parquet.ParquetFile(path).iter_batches():
            yield from (
                str(value) for column in batch.columns for value in column.to_pylist() if value is not None
            )
    except (pyarrow.ArrowException, OSError):
        return  # cut short: whoever reads it finds nothing either


def _header_bytes(path: Path, start: bytes) -> int:
    size = path.stat().st_size
    return min(size, 8 + int.from_bytes(start, "little")) if len(start) == 8 else size
