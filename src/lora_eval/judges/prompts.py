"""Judge prompts: templates split into turns once, slots filled in one pass, so that no answer adds a turn or
a slot.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from lora_eval.errors import InputError, RecordError
from lora_eval.judges.evaluators import PREFIX, evaluator_folder
from lora_eval.judges.mt_bench import Messages, Question, judge_messages, judge_prompts
from lora_eval.resources import resource_folder
from lora_eval.schema import load_yaml, suggest

_MT_BENCH = "mt-bench"
# alpaca_eval's templates name their slots otherwise.
_SLOT = re.compile(r"\{(question|answer_a|answer_b|instruction|output_1|output_2)\}")
_NAMES = {"instruction": "question", "output_1": "answer_a", "output_2": "answer_b"}
_TURN = re.compile(r"<\|im_start\|>(system|user|assistant)\n(.*?)<\|im_end\|>\s*", re.DOTALL)
# What servers' chat templates read as the end of a turn, and the marks around the answers of our prompts.
_CONTROL = re.compile(
    r"<(?=\|(?! )[^|<>\n]{1,60}(?<! )\|>)|<(?=\uff5c)|<(?=/?s>)"
    r"|<(?=(?:start|end)_of_turn>)|<(?=(?:bos|eos|pad|unk)>)|<(?=<?/?SYS>>)"
    r"|\[(?=/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_RESULTS)\])"
    r"|\[(?=(?:End of question|(?:End of )?[Aa]nswer [AB]|Question|User Question|System)\])"
    r"|\[(?=The (?:Start|End) of [^\]\n]{1,60}\])|#(?=##(?:Response [AB]|Score Rubric|Feedback|Instruction):)"
)


@dataclass(frozen=True, slots=True)
class Template:
    """A prompt in turns. `name` is as the profile has it; MT-Bench's eight prompts have no turns of their
    own.
    """

    name: str
    turns: Messages

    @property
    def text(self) -> str:
        """All that is sent besides the slots, for the judge's identity."""
        if self.name == _MT_BENCH:
            return json.dumps([[p.name, p.system, p.template] for p in judge_prompts().values()])
        return json.dumps(self.turns)

    @property
    def multi_turn(self) -> bool:
        """Whether it can judge the second turn of a conversation."""
        return self.name == _MT_BENCH

    def fill(self, question: Question, turn: int, answers: Sequence[Sequence[str]]) -> Messages:
        """Return the messages that judge one turn of one answer, or of two in the order shown.

        Marks that a chat template could take for the end of a turn are broken in question and answers by one
        space. A text without such marks is shown as it is.

        Raises:
            InputError: the template cannot judge this turn, or a reference is missing.
        """
        shown = [[disarm(text) for text in turns] for turns in answers]
        question = replace(question, turns=tuple(disarm(text) for text in question.turns))
        if self.name == _MT_BENCH:
            return judge_messages(question, turn, shown)
        if turn != 1:
            raise InputError(f"question {question.id}: template {self.name} judges one turn, not turn {turn}")
        values = {"question": question.turns[0], "answer_a": shown[0][0], "answer_b": shown[-1][0]}
        return tuple((role, _filled(text, values)) for role, text in self.turns)


def disarm(text: str) -> str:
    """Return the text with a space inside every mark that ends a turn or an answer."""
    return _CONTROL.sub(lambda found: f"{found[0]} ", text)


@cache
def load_template(name: str) -> Template:
    """Return the template that a profile names.

    Raises:
        InputError: there is none of that name, or the file is no prompt.
        MissingExtraError: it is alpaca_eval's, which is not installed.
    """
    if name == _MT_BENCH:
        return Template(name, ())
    if name.startswith(PREFIX):
        return Template(name, split_turns(_read_upstream(name.removeprefix(PREFIX)), name))
    folder = resource_folder("templates") / "judges" / "prompts"
    path = Path(name) if "/" in name or name.endswith(".yaml") else folder / f"{name}.yaml"
    if not path.is_file():
        known = [_MT_BENCH, *(file.stem for file in sorted(folder.glob("*.yaml")))]
        raise InputError(f"no judge prompt '{name}'{suggest(name, known)} Known: {', '.join(known)}")
    return Template(name, _yaml_turns(path))


def split_turns(text: str, source: str) -> Messages:
    """Return the turns of a ChatML text, before any slot is filled.

    Raises:
        InputError: there is text outside of turns.
    """
    turns = tuple((found[1], found[2].strip()) for found in _TURN.finditer(text))
    if not turns or _TURN.sub("", text).strip():
        raise InputError(f"{source}: expected <|im_start|>ROLE ... <|im_end|> turns and nothing else")
    return turns


def _read_upstream(file: str) -> str:
    try:
        return (evaluator_folder() / file).read_text("utf-8")
    except OSError as error:
        raise InputError(f"alpaca_eval has no prompt {file}: {error.strerror}") from error


def _yaml_turns(path: Path) -> Messages:
    data = load_yaml(path)
    turns, problems = [], []
    messages = data.get("messages")
    if not isinstance(messages, list) or not messages:
        raise RecordError(str(path), ["messages: expected a list of {role, content}"])
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping) or set(message) != {"role", "content"}:
            problems.append(f"messages[{number}]: expected role and content")
        elif message["role"] not in ("system", "user", "assistant") or not isinstance(
            message["content"], str
        ):
            problems.append(f"messages[{number}]: expected a role system, user or assistant, and text")
        else:
            turns.append((message["role"], message["content"]))
    slots = {_NAMES.get(slot, slot) for _, text in turns for slot in _SLOT.findall(text)}
    problems += [f"messages: no slot {{{slot}}}" for slot in ("question", "answer_a") if slot not in slots]
    if problems:
        raise RecordError(str(path), problems)
    return tuple(turns)


def _filled(text: str, values: Mapping[str, str]) -> str:
    return _SLOT.sub(lambda slot: values[_NAMES.get(slot[1], slot[1])], text)
