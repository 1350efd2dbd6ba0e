"""Judge profiles: the packaged ones, files with faults, keys that must not be there, plugins, identity."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest

from lora_eval import registry
from lora_eval.errors import InputError, PluginError, RecordError
from lora_eval.judges.profiles import identity, is_loopback, load_profile, packaged_profiles, read_key
from lora_eval.judges.prompts import load_template
from lora_eval.records import JudgeLimits, JudgePrice, JudgeProfile

NAMES = {
    "openai-text",
    "openai-tool",
    "alpaca-logprob",
    "mtbench-single",
    "mtbench-pair",
    "arena-hard-5",
    "vllm-choice",
    "llama.cpp",
    "prometheus2",
    "skywork-critic",
}
LOCAL = {"model": "m", "base_url": "http://127.0.0.1:1/v1"}
KEY = "sk-abcdefghijklmnopqrstuvwxyz012345"
MINE = "name: mine\nmode: pair\nverdict: text\ntemplate: pair\nparser: letter\n"


@pytest.fixture
def mine(tmp_path):
    def write(text):
        path = tmp_path / "mine.yaml"
        path.write_text(MINE + text, "utf-8")
        return str(path)

    return write


def test_all_profiles_of_the_package_load_with_their_prompts():
    assert set(packaged_profiles()) == NAMES
    for name in NAMES:
        profile = load_profile(name, **LOCAL)
        assert profile.name == name
        assert profile.summary
        assert load_template(profile.template).text


def test_every_fault_of_a_file_is_told(mine):
    text = "modle: x\nparams: {temperature: -1, max_tokens: many}\nlimits: {rpm: 0}\nprice: {input: 1}\n"
    with pytest.raises(RecordError) as error:
        load_profile(mine(text))
    said = str(error.value)
    for part in (
        "unknown key 'modle'; did you mean 'mode'?",
        "params.temperature",
        "params.max_tokens: expected a whole",
        "limits.rpm",
        "missing key 'price.output'",
    ):
        assert part in said


@pytest.mark.parametrize(
    ("text", "place"),
    [
        (f"api_key_env: {KEY}\n", "api_key_env"),
        (f"api_key: {KEY}\n", "api_key"),
        (f"params: {{extra_body: {{token: {KEY}}}}}\n", "params.extra_body.token"),
        (f"params: {{extra_body: {{x: [a, {KEY}]}}}}\n", "params.extra_body.x[1]"),
        ("params: {extra_body: {api_key: short}}\n", "params.extra_body.api_key"),
        ("base_url: https://me:hunter2@api.example.com/v1\n", "base_url"),
    ],
)
def test_a_key_in_a_file_is_refused_unseen(mine, text, place):
    with pytest.raises(RecordError) as error:
        load_profile(mine(text), model="m")
    assert f"{place}: looks like a key" in str(error.value)
    for secret in (KEY, "hunter2", "short"):
        assert secret not in str(error.value)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("ftp://x/v1", "expected http"),
        ("api.example.com/v1", "expected http"),
        ("https://a:b@x/v1", "user name"),
        ("https://x/v1?key=1", "expected no"),
    ],
)
def test_urls_that_cannot_be_used(url, says):
    with pytest.raises(InputError, match=says):
        load_profile("openai-text", model="m", base_url=url)


def test_model_and_url_must_be_known(mine):
    with pytest.raises(InputError) as error:
        load_profile(mine(""))
    assert "no model; give --judge-model" in str(error.value)
    assert "no base_url; give --judge-url" in str(error.value)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://localhost:8000/v1", True),
        ("http://127.0.0.1/v1", True),
        ("http://127.9.9.9/v1", True),
        ("http://[::1]:8000/v1", True),
        ("http://127.0.0.1.nip.io/v1", False),
        ("http://localhost.evil/v1", False),
        ("http://0.0.0.0/v1", False),
        ("http://10.0.0.1/v1", False),
    ],
)
def test_loopback(url, expected):
    assert is_loopback(url) is expected


def test_an_unknown_name_is_answered_with_the_nearest(mine):
    with pytest.raises(PluginError, match=r"No judge named 'openai-txt'; did you mean 'openai-text'\?"):
        load_profile("openai-txt")


def test_plugins_bring_judges(monkeypatch):
    entry = EntryPoint("acme-judge", "tests.judges.test_profiles:acme", "lora_eval.judges")
    monkeypatch.setattr(
        registry, "entry_points", lambda group: [entry] if group == "lora_eval.judges" else []
    )
    assert load_profile("acme-judge", **LOCAL).summary == "ours"
    broken = EntryPoint("acme-judge", "tests.judges.test_profiles:NAMES", "lora_eval.judges")
    monkeypatch.setattr(
        registry, "entry_points", lambda group: [broken] if group == "lora_eval.judges" else []
    )
    with pytest.raises(PluginError, match="expected JudgeProfile"):
        load_profile("acme-judge", **LOCAL)
    monkeypatch.setattr(
        registry, "entry_points", lambda group: [entry] * 2 if group == "lora_eval.judges" else []
    )
    with pytest.raises(PluginError, match="is defined by"):
        load_profile("acme-judge", **LOCAL)


def acme() -> JudgeProfile:
    return JudgeProfile(
        name="acme-judge", summary="ours", mode="pair", verdict="text", template="pair", parser="letter"
    )


def test_identity_follows_all_that_shapes_a_verdict_and_nothing_else():
    profile = load_profile("openai-text", **LOCAL)
    name = identity(profile, "prompt")
    same = {
        "limits": JudgeLimits(rpm=1),
        "price": JudgePrice(input=1, output=1),
        "retries": 1,
        "summary": "x",
        "api_key_env": "OTHER",
    }
    assert identity(profile.model_copy(update=same), "prompt") == name
    for change in (
        {"model": "n"},
        {"rule": "fastchat"},
        {"base_url": "http://127.0.0.1:2/v1"},
        {"params": profile.params.model_copy(update={"temperature": 1.0})},
    ):
        assert identity(profile.model_copy(update=change), "prompt") != name
    assert identity(profile, "another prompt") != name


@pytest.mark.parametrize("key", ["clé-0123456789", "a key", "line\nbreak"])
def test_what_is_no_key_is_refused_unseen(monkeypatch, key):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(InputError, match="what OPENAI_API_KEY holds is no key") as error:
        read_key(load_profile("openai-text", model="m"))
    assert key not in str(error.value)


def test_a_key_in_the_environment_is_read(monkeypatch):
    profile = load_profile("openai-text", model="m")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert read_key(profile) == KEY
    assert KEY not in repr(profile)


FAULTS = {
    "verdict: choice\nparser: label\n": "needs labels",
    "verdict: text\nparser: rating\n": "does not fit mode pair",
    "verdict: logprob\nparser: label\nlabels: {first: A, second: B}\n": "top_logprobs",
    "verdict: tool\nparser: letter\nlabels: {first: A, second: B}\n": "parser label",
}


@pytest.mark.parametrize("text", FAULTS)
def test_verdict_and_parser_must_fit(tmp_path, text):
    path = tmp_path / "p.yaml"
    path.write_text(f"name: x\nmode: pair\ntemplate: pair\n{text}", "utf-8")
    with pytest.raises(RecordError, match=FAULTS[text]):
        load_profile(str(path), **LOCAL)
