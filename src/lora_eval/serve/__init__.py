"""A local vLLM for base and adapters, or for an exported model: started, waited for, warmed up, ended.

`command` makes its arguments, `process` runs it, `watchdog` ends its workers whatever happens to us.
"""

from lora_eval.serve.command import Serving, find_vllm
from lora_eval.serve.process import LocalServer

__all__ = ["LocalServer", "Serving", "find_vllm"]
