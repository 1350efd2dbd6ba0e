"""The checks in order: what the server lists, whose answers it gives, how they end, what disturbs them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from lora_eval.engines.http_client import Refused, ServerClient
from lora_eval.engines.http_requests import Unread, listed_entry
from lora_eval.errors import InputError
from lora_eval.protocols import Progress
from lora_eval.records import Smoke, SmokeCheck
from lora_eval.smoke.answers import (
    check_greedy,
    check_listed,
    check_not_another,
    check_prompt_values,
    check_streaming,
    check_unknown,
    check_values,
)
from lora_eval.smoke.conversations import (
    check_chat,
    check_finish_reason,
    check_stop_token,
    check_template,
)
from lora_eval.smoke.load import check_loopback, measure_load
from lora_eval.smoke.local import SOURCE, LocalArm, answer_folder, answer_here
from lora_eval.smoke.mixed import ask_together, check_mixed
from lora_eval.smoke.plain import check_plainly, plain_rows, takes_ids
from lora_eval.smoke.prompts import read_prompts
from lora_eval.smoke.reload import check_reload
from lora_eval.smoke.served import Outcome, Served, find_served, outcome

Check = Callable[[Served, LocalArm], Outcome]
_EACH: dict[str, Check] = {
    "greedy-text": check_greedy,
    "log-probabilities": check_values,
    "prompt-log-probabilities": check_prompt_values,
    "streaming": check_streaming,
    "template": check_template,
    "chat": check_chat,
    "stop-token": check_stop_token,
    "finish-reason": check_finish_reason,
}


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked of the server. `adapters` and `models` (whole models that are served on their own) map
    served names to folders; `dtype` and `quantization` are those of the base here, `model_dtype`
    that of the models. `prompts` is a file of prompts that are asked too. `allow_load` lets the server be
    changed, `load` puts load on it.
    """

    base: Path | None = None
    base_name: str | None = None
    adapters: Mapping[str, Path] = field(default_factory=dict)
    models: Mapping[str, Path] = field(default_factory=dict)
    dtype: str = "auto"
    model_dtype: str = "auto"
    quantization: dict[str, Any] | None = None
    prompts: Path | None = None
    allow_load: bool = False
    load: bool = False

    def check(self, url: str) -> None:
        """Raise InputError for what cannot be asked together."""
        if not self.adapters and not self.models:
            raise InputError("nothing to ask for: give --adapter NAME=PATH, or --model NAME=DIR")
        if self.adapters and self.base is None:
            raise InputError("an adapter needs the model it was trained on; give --base")
        if self.load:
            check_loopback(url)
        if (self.load or self.allow_load) and not self.adapters:
            raise InputError("--load and --allow-load are about adapters; give --adapter NAME=PATH")


def smoke(url: str, asked: Asked, progress: Progress) -> Smoke:
    """Return the verdict on the server at `url`.

    Raises:
        InputError: the URL, or what is asked, cannot be used.
        DataError, TemplateError: the prompts cannot be read, or not be rendered.
        ModelError: a folder cannot be opened here.
        ServerError: the server cannot be reached, or ends under the checks.
    """
    asked.check(url)
    with ServerClient(url) as client:
        progress("looking at the server", 0, 1)
        served = find_served(client)
        progress("answering here", 0, 1)
        plain = _is_plain(served, asked)
        arms = _local_arms(served, asked, plain=plain)
        if plain:
            checks = [check for arm in arms for check in check_plainly(served, arm)]
        else:
            checks = _checks(served, arms, asked, progress)
        load = []
        if asked.load:
            base = next(arm for arm in arms if arm.name in asked.adapters).base
            prompts = arms[0].probe.generations
            copied = next(iter(asked.adapters.values())) if asked.allow_load else None
            load = measure_load(served, base or "", tuple(asked.adapters), prompts, progress, copied=copied)
    notes = [SOURCE, *dict.fromkeys(f"{arm.name}: {arm.note}" for arm in arms if arm.note)]
    return Smoke(
        url=client.url,
        server=served.version,
        passed=all(check.passed is not False for check in checks),
        checks=tuple(checks),
        dtype={arm.name: arm.dtype for arm in arms},
        tolerance={arm.name: (arm.tolerance.mean, arm.tolerance.largest) for arm in arms},
        tolerance_source="; ".join(notes),
        load=tuple(load),
    )


def _is_plain(served: Served, asked: Asked) -> bool:
    """Whether the server takes texts only.

    Raises:
        InputError: it does, and adapters are to be asked for.
    """
    asked_for, listed = (*asked.models, *asked.adapters), served.models or {}
    # Of a name that it does not have a server may say 400, as of ids.
    known = [name for name in asked_for if listed_entry(listed, name) is not None]
    if takes_ids(served, next(iter((*known, *listed, *asked_for)))):
        return False
    if asked.adapters:
        raise InputError(
            f"{served.client.url}: takes texts only, by which adapters cannot be told apart; whole models "
            "can be asked of it: --model NAME=DIR"
        )
    return True


def _local_arms(served: Served, asked: Asked, *, plain: bool) -> list[LocalArm]:
    arms: list[LocalArm] = []
    rows = read_prompts(asked.prompts) if asked.prompts is not None else []
    if asked.base is not None:
        name = served.base_name(asked.base_name)
        twice = {name, *asked.adapters} & set(asked.models) or {name} & set(asked.adapters)
        if twice:
            raise InputError(f"'{twice.pop()}' is named twice; a served name stands for one model")
        arms += answer_here(
            asked.base, asked.adapters, base_name=name, dtype=asked.dtype,
            quantization=asked.quantization, longest=served.longest, rows=rows,
        )  # fmt: skip
    for name, folder in asked.models.items():
        own = rows or (plain_rows(folder) if plain else [])
        dtype, longest = asked.model_dtype, served.longest
        arms.append(answer_folder(folder, name=name, dtype=dtype, longest=longest, rows=own))
    return arms


def _checks(served: Served, arms: list[LocalArm], asked: Asked, progress: Progress) -> list[SmokeCheck]:
    """Return all checks of the arms that the server lists; of the others only that it does not."""
    checks = [outcome("listed", arm.name, partial(check_listed, served, arm)) for arm in arms]
    arms = [arm for arm, check in zip(arms, checks, strict=True) if check.passed is not False]
    if asked.adapters and arms:
        one = next((arm for arm in arms if arm.is_adapter), arms[0])
        checks.append(outcome("unknown-model", None, partial(check_unknown, served, one)))
    for place, arm in enumerate(arms):
        progress(f"asking {arm.name}", place, len(arms))
        for other in arm.others if arm.is_adapter else ():
            if other != arm.name:
                name = "not-the-base" if other == arm.base else "not-another-adapter"
                checks.append(outcome(name, arm.name, partial(check_not_another, served, arm, other)))
        checks += [outcome(name, arm.name, partial(check, served, arm)) for name, check in _EACH.items()]
    if len(arms) > 1:
        progress("asking all at once", 0, 1)
        checks += _mixed(served, arms)
    if asked.allow_load:
        adapter = next((arm for arm in arms if arm.is_adapter), None)
        if adapter is not None:
            progress("loading an adapter", 0, 1)
            checks += check_reload(served, adapter)
    return checks


def _mixed(served: Served, arms: list[LocalArm]) -> list[SmokeCheck]:
    try:
        told = ask_together(served, arms)
    except (Refused, Unread) as error:
        said = f"asked all at once, the server answers {error}"
        return [SmokeCheck(name="mixed-batches", arm=arm.name, passed=False, detail=said) for arm in arms]
    return [outcome("mixed-batches", arm.name, partial(check_mixed, served, arm, told)) for arm in arms]
