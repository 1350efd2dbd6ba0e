"""A local vLLM for base and adapters, or for an exported model: started, waited for, warmed up, ended.

`command` makes its arguments, `whole` those of `transformers serve`, `process` runs either under a
watchdog, which ends their workers whatever happens to us.
"""

from lora_eval.serve.command import Serving, find_vllm
from lora_eval.serve.process import LocalServer
from lora_eval.serve.whole import WholeModel, check_whole

__all__ = ["LocalServer", "Serving", "WholeModel", "check_whole", "find_vllm"]
