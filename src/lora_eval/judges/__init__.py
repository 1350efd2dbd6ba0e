"""Judges: what another model says of the answers.

Files of verdicts (ours, alpaca_eval's, FastChat's) become figures; answers become verdicts through a client
of any OpenAI-compatible endpoint. Statistics are those of `lora_eval.stats`; docs/judges.md holds the rules.
"""
