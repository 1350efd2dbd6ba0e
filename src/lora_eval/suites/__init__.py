"""Suites: what is asked of a model, and how the answers are scored."""
