"""The command line. Each command lives in a file of its own and is imported only when it is run.

Exit status: 0 done and passed; 1 a fault of ours; 2 bad input or usage; 3 a check failed; 130 interrupted.
"""

from lora_eval.cli.main import main

__all__ = ["main"]
