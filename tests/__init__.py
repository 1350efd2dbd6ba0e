"""Tests of lora-eval; folders mirror src/lora_eval."""
