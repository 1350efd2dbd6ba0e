"""alpaca_eval's own evaluator configurations as judge profiles: `alpaca_eval:NAME`. Read by path, not
imported.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lora_eval.errors import InputError, MissingExtraError
from lora_eval.records import JudgeParams, JudgeProfile, UpstreamParser
from lora_eval.resources import package_folder
from lora_eval.schema import load_yaml, suggest

PREFIX = "alpaca_eval:"
# What is the client's business in a configuration, and not sent.
_CLIENT = frozenset(
    {
        "model_name",
        "max_tokens",
        "temperature",
        "top_p",
        "num_procs",
        "price_per_token",
        "client_kwargs",
        "requires_chatml",
        "batch_size",
    }
)
_ASKED = ("openai_completions", "vllm_local_completions")
_WHOLE = "completions_all"


def evaluator_profile(name: str) -> JudgeProfile:
    """Return the profile that asks and reads as alpaca_eval's evaluator `name` does.

    Its model and endpoint are the configuration's, where it names one, and can be given otherwise.

    Raises:
        MissingExtraError: alpaca_eval is not installed.
        InputError: it has no such evaluator, or one that asks several pairs at once or no chat endpoint.
    """
    folder = evaluator_folder()
    path = folder / name / "configs.yaml"
    known = sorted(file.parent.name for file in folder.glob("*/configs.yaml"))
    if name not in known:
        raise InputError(
            f"alpaca_eval has no evaluator '{name}'{suggest(name, known)} Known: {', '.join(known)}"
        )
    config = next(iter(load_yaml(path).values()))
    if config.get("fn_completions") not in _ASKED or config.get("batch_size", 1) != 1:
        asks = f"{config.get('fn_completions')} for {config.get('batch_size', 1)} pairs at once"
        raise InputError(f"{path}: asks {asks}; judged here are chat endpoints, one pair at a time")
    asked = dict(config.get("completions_kwargs", {}))
    return JudgeProfile(
        name=f"{PREFIX}{name}",
        summary=f"alpaca_eval's evaluator {name}",
        mode="pair",
        base_url=(asked.get("client_kwargs") or {}).get("base_url", "https://api.openai.com/v1"),
        model=asked.get("model_name"),
        api_key_env="OPENAI_API_KEY",
        verdict="text",
        template=f"{PREFIX}{config['prompt_template']}",
        parser="alpaca_eval",
        upstream=_parser(config),
        params=_params(asked),
    )


def evaluator_folder() -> Path:
    """Return the folder of alpaca_eval's configurations.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        return package_folder("alpaca_eval") / "evaluators_configs"
    except InputError:
        raise MissingExtraError(
            "this needs alpaca_eval, which is not installed: pip install 'lora-eval[judge]'"
        ) from None


def _parser(config: dict[str, Any]) -> UpstreamParser:
    return UpstreamParser(
        function=config.get("fn_completion_parser", "regex_parser"),
        arguments=config.get("completion_parser_kwargs") or {},
        whole=config.get("completion_key") == _WHOLE,
    )


def _params(asked: dict[str, Any]) -> JudgeParams:
    """What alpaca_eval sends (decoders/openai.py): top_p 1 and temperature 0.7 unless it is told
    otherwise.
    """
    return JudgeParams(
        temperature=asked.get("temperature", 0.7),
        top_p=asked.get("top_p", 1.0),
        max_tokens=asked.get("max_tokens") or 1024,
        extra_body={key: value for key, value in asked.items() if key not in _CLIENT},
    )
