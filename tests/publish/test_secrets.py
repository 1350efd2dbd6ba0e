"""Secrets are found however they are written, and words and weights are none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_eval.publish.refusals import check_file
from lora_eval.publish.secrets import secrets_in

HF = "a Hugging Face token"
SECRETS = {
    HF: "hf_" + "aB3" * 12,
    "an OpenAI, Anthropic or OpenRouter key": "sk-proj-" + "x1Y_" * 10,
    "a GitHub token": "ghp_" + "a1B2" * 9,
    "a GitLab token": "glpat-" + "a1B2-" * 4,
    "an AWS access key": "AKIA" + "ABCD1234" * 2,
    "an AWS secret key": "aws_secret_access_key = " + "wJal/7+x" * 5,
    "an Azure account key": "AccountKey=" + "abC1" * 21 + "==",
    "a Google key": "AIza" + "a1_-B" * 7,
    "a Slack token": "xoxb-" + "123456789012-abc",
    "an npm token": "npm_" + "a1B2" * 9,
    "a PyPI token": "pypi-AgEIcHlwaS5vcmc" + "a1B2" * 20,
    "a Weights & Biases key": "WANDB_API_KEY=" + "0123456789" * 4,
    "a Replicate, Groq, xAI or Perplexity key": "gsk_" + "a1B2" * 13,
    "a Databricks or DigitalOcean token": "dapi" + "0123abcd" * 4,
    "a Stripe key": "sk_live_" + "a1B2" * 6,
    "a SendGrid key": "SG." + "a1B2_-cdefghijklmnopqr." + "a" * 43,
    "a signed web token": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abcdefghijkl",
    "a password in an address": "https://ann:s3cret-word@example.org/model",
    "a login of a .netrc": "machine example.org login ann password hunter22",
    "a key or password": '"client_secret": "a1b2c3d4e5f6g7h8"',
    "a private key": "-----BEGIN OPENSSH PRIVATE KEY-----",
}


def test_every_pattern_has_its_example() -> None:
    from lora_eval.publish import secrets

    assert list(SECRETS) == list(secrets._SECRETS)


@pytest.mark.parametrize("what", SECRETS)
@pytest.mark.parametrize("before", [0, (1 << 22) - 10])
def test_a_secret_is_found_wherever_it_stands(tmp_path: Path, what: str, before: int) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("x " * (before // 2) + f"found: {SECRETS[what]}\n")
    assert list(secrets_in(path)) == [f"holds {what}; remove it, and revoke it"]


TOKEN = SECRETS[HF]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("nested.json", json.dumps({"a": [{"b": f"first line\n{TOKEN}"}]}).encode()),
        ("twice.json", json.dumps({"a": json.dumps({"b": f"x\t{TOKEN}"})}).encode()),
        ("escaped.json", f'{{"a": "\\u0068{TOKEN[1:]}"}}'.encode()),
        ("slash.json", f'{{"a": "x\\/{TOKEN}"}}'.encode()),
        ("wide.txt", f"token {TOKEN}".encode("utf-16")),
        ("joined.txt", f"my_token_{TOKEN}".encode()),
        ("name.yaml", f"token: {TOKEN}".encode()),
        ("notes", TOKEN.encode()),
        ("image.png", b"\x89PNG\r\n" + TOKEN.encode()),
    ],
)
def test_no_way_of_writing_hides_a_token(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert [HF in problem for problem in check_file(tmp_path / name)] == [True]


def test_a_token_in_compressed_parquet_is_found(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    words = " ".join(f"{n * 7919 % 1000}-{TOKEN[n % 9 : n % 30]}" for n in range(400))
    table = pyarrow.table({"n": [1, 2], "text": [None, f"{words} {TOKEN}"]})
    parquet.write_table(table, tmp_path / "rows.parquet", compression="zstd")
    assert TOKEN.encode() not in (tmp_path / "rows.parquet").read_bytes()
    assert [HF in problem for problem in check_file(tmp_path / "rows.parquet")] == [True]


@pytest.mark.parametrize(
    "text",
    [
        '{"pad_token": "<|endoftext_padding_token_0|>", "eos_token": "<|im_end|>"}',
        "risk-averse-and-otherwise-long-words-joined-by-dashes task-specific-adapter-configuration-of-models",
        "https://example.org:8080/a@b hf_hub_download_of_a_model_with_a_long_name",
    ],
)
def test_words_are_no_secret(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    assert list(check_file(tmp_path / "a.json")) == []


@given(st.binary(max_size=300))
def test_bytes_of_weights_are_no_secret(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("w") / "model.safetensors"
    header = json.dumps({"__metadata__": {"format": "pt"}}).encode()
    path.write_bytes(
        len(header).to_bytes(8, "little") + header + data + SECRETS["an AWS access key"].encode()
    )
    assert list(secrets_in(path)) == []
    evil = json.dumps({"__metadata__": {"note": SECRETS["a GitHub token"]}}).encode()
    path.write_bytes(len(evil).to_bytes(8, "little") + evil + data)
    assert len(list(secrets_in(path))) == 1


@pytest.mark.parametrize("name", [".env", ".env.local", "id_rsa", "id_ed25519.pub", "server.pem", ".netrc"])
def test_files_of_secrets_are_known_by_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("nothing")
    assert ["by its name it holds a secret" in problem for problem in check_file(tmp_path / name)] == [True]
