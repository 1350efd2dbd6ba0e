"""The compare stage: pairing, tests, verdicts and what is written."""
