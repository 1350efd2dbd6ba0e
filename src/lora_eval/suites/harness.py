"""lm-eval's own command line with the model `lora_eval`: `python -m lora_eval.suites.harness --model ...`.

lm-eval 0.4.13 finds no models of other packages: it scans no entry points and has no option for plugins.
Only a task file given by its path may import us in time, through a function of its own. Later versions read
the entry points `lm_eval.models`; there `lm_eval --model lora_eval` needs nothing from here.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

NAME = "lora_eval"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run lm-eval's command with these arguments (None: those of this process).

    Raises:
        SystemExit: as lm-eval ends its command.
    """
    # Importing it registers lm-eval's own models, which lm-eval does only while there are none.
    import lm_eval.models  # noqa: F401
    from lm_eval.__main__ import cli_evaluate
    from lm_eval.api.registry import model_registry

    from lora_eval.suites.requests import compiled_templates

    if NAME not in model_registry:
        model_registry.register(NAME, target="lora_eval.suites.bridge:LoraEvalLM")
    given = sys.argv
    sys.argv = ["lm_eval", *(given[1:] if arguments is None else arguments)]
    try:
        with compiled_templates():
            cli_evaluate()
    finally:
        sys.argv = given


if __name__ == "__main__":
    main()
