"""The evaluation stage: every arm of a comparison scored on the same items (see `stage`)."""

from lora_eval.evaluate.arms import ORIGINAL, Arms, FolderArm
from lora_eval.evaluate.stage import Evaluated, evaluate, evaluate_arms, open_suite

__all__ = ["ORIGINAL", "Arms", "Evaluated", "FolderArm", "evaluate", "evaluate_arms", "open_suite"]
