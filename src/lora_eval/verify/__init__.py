"""Verify: are the candidate's next-token distributions those of the arm that was measured?

`arms` opens both, `prompts` and `suite_items` make what is asked, `reference` computes the reference's side
once and stores it (`kept`: what of a distribution), `arithmetic` runs its weights in another precision or on
a coarser grid (the noise floors), `divergence` compares, `tolerance` turns floors into limits, `checks` and
`diagnose` look at the candidate's files (`expected`: what should be in them, `packed`: what GPTQ's integers
stand for, `explain`: what makes one weight another one), `stage` is the order of it all.
"""

from lora_eval.verify.arms import ArmPath, parse_arm_path
from lora_eval.verify.prompts import small_set
from lora_eval.verify.reference import default_folder
from lora_eval.verify.stage import Options, verify
from lora_eval.verify.tolerance import parse_tolerance

__all__ = ["ArmPath", "Options", "default_folder", "parse_arm_path", "parse_tolerance", "small_set", "verify"]
