"""Parity with lm-eval: real tasks, in its own formats, against its own model."""
