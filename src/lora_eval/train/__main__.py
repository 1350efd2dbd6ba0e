"""`accelerate launch -m lora_eval.train ...` is `lora-eval train ...`, once in each process."""

import sys

from lora_eval.cli.main import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
