"""A running server is asked whether it serves what was measured; the same weights answer here.

`local` answers here, `served` asks the server, the others hold the checks; `stage` puts them in order.
"""

from lora_eval.smoke.stage import Asked, smoke

__all__ = ["Asked", "smoke"]
