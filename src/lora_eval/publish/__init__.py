"""Publish: weights, card and records as one commit, and a card in which every number can be checked.

`contents` gathers what goes up, `refusals` and `licences` say what must not, `card` writes the card from
records alone, `hub` is the home of huggingface_hub, `check` recomputes what a repository claims.
"""

from lora_eval.publish.check import check_folder
from lora_eval.publish.finding import Finding
from lora_eval.publish.measured import Options
from lora_eval.publish.results import gather_results
from lora_eval.publish.stage import Published, prepare, publish

__all__ = ["Finding", "Options", "Published", "check_folder", "gather_results", "prepare", "publish"]
