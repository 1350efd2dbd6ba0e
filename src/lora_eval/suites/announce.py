"""`lm_eval --model lora_eval`: our model is among lm-eval's own in every process of its command line.

lm-eval 0.4.13 scans no entry points and has no option for plugins. Its command imports torch before it looks
for the model (to set the seed), and torch loads the entry points `torch.backends` at the end of its import
(pytorch/pytorch#122468): ours is `register`. A later lm-eval reads our entry point `lm_eval.models` itself.
"""

from __future__ import annotations

import sys
import warnings

NAME = "lora_eval"


def register() -> None:
    """Name our model to lm-eval where lm-eval is at work; its code is imported when it is asked for.

    In other processes nothing happens. Nothing is ever raised: torch cannot be imported where this fails.
    """
    if "lm_eval" not in sys.modules:
        return
    try:
        # Importing it registers lm-eval's own models, which lm-eval does only while there are none.
        import lm_eval.models  # noqa: F401
        from lm_eval.api.registry import model_registry

        if NAME not in model_registry:
            model_registry.register(NAME, target="lora_eval.suites.bridge:LoraEvalLM")
    except Exception as error:
        warnings.warn(f"lm-eval does not know the model '{NAME}': {error}", RuntimeWarning, stacklevel=2)
