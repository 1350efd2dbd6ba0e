"""Every error that this package raises on purpose.

LoraEvalError                   exit status 1: a fault of ours
|- InputError                   2: what was given cannot be used
|  |- RecordError               a file breaks its schema; lists every problem of the file
|  |- ModelError                a model or adapter folder is missing, empty, or does not fit
|  |- DataError                 a data set cannot be read or holds nothing to train on
|  |- TemplateError             a chat template is missing, unknown or does not render
|  |- TaskError                 an unknown task, or a task whose data set is not on this machine
|  |- OutputError               the output folder is not empty, or the disk is full
|  |- HubError                  the Hub cannot be reached, or refuses what was asked
|  |- ServerError              a model's server cannot be reached, or does not answer as is needed
|  |- JudgeError                a judge's endpoint refuses, or keeps failing; the same command goes on
|  |- PluginError               a plugin is unknown, defined twice, or broken
|  `- MissingExtraError         an optional library is not installed
|- SpendingCapError            5: the next paid call might cost more than is left; the same command goes on
`- CheckFailed                  3: the run went through and the answer is no
   |- ControlFailed             an A/A or determinism control was not exactly zero
   |- GateFailed                a rule of the gate was broken
   |- CalibrationFailed         a judge is no better than chance, or follows the order of the answers
   `- VerificationFailed        a saved, merged or quantized model is not the measured one

The command line prints the message and ends with `exit_status`; only status 1 shows a traceback.
"""

from __future__ import annotations

from collections.abc import Iterable


class LoraEvalError(Exception):
    """Base of all errors raised on purpose; `exit_status` is what the command ends with."""

    exit_status = 1


class InputError(LoraEvalError):
    """What the user gave cannot be used; the message names the file or key and what to do."""

    exit_status = 2


class RecordError(InputError):
    """A file breaks its schema. `problems` holds one line for each fault, with its place."""

    def __init__(self, source: str, problems: Iterable[str]) -> None:
        self.source = source
        self.problems = tuple(problems)
        super().__init__("\n".join(f"{source}: {problem}" for problem in self.problems))


class ModelError(InputError):
    """A model or adapter folder is missing, empty, or does not fit its base."""


class DataError(InputError):
    """A data set cannot be read, or holds nothing to train on."""


class TemplateError(InputError):
    """A chat template is missing, unknown, or does not render."""


class TaskError(InputError):
    """A task is unknown, or its data set is not on this machine."""


class OutputError(InputError):
    """The output folder is not empty or cannot be written, or the disk is full."""


class HubError(InputError):
    """The Hub cannot be reached, or refuses what was asked; the message never holds a token."""


class ServerError(InputError):
    """A model's server cannot be reached, or does not answer as is needed; what it answered is stored."""


class JudgeError(InputError):
    """A judge's endpoint refuses what it is asked, or keeps failing; what it answered is stored."""


class PluginError(InputError):
    """A plugin is unknown, defined twice, or cannot be loaded."""


class MissingExtraError(InputError):
    """An optional library is not installed; the message holds the pip command."""


class SpendingCapError(LoraEvalError):
    """The next paid call might cost more than was allowed; what was answered is stored."""

    exit_status = 5


class CheckFailed(LoraEvalError):
    """The run went through, and the answer is no."""

    exit_status = 3


class ControlFailed(CheckFailed):
    """An A/A or determinism control was not exactly zero: the comparison is refused."""


class GateFailed(CheckFailed):
    """A rule of the gate was broken."""


class CalibrationFailed(CheckFailed):
    """A judge is no better than chance on labelled pairs, or follows the order of the answers."""


class VerificationFailed(CheckFailed):
    """A saved, merged or quantized model is not the one that was measured."""
