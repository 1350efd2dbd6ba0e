"""`python -m lora_eval` is the `lora-eval` command."""

from lora_eval.cli import main

if __name__ == "__main__":
    main()
