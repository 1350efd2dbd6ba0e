"""Verify: are the candidate's next-token distributions those of the arm that was measured?

`arms` opens both, `prompts` makes what is asked, `divergence` compares distributions in chunks, `arithmetic`
runs the reference's weights in another precision (the noise floor), `tolerance` turns the floor into limits,
`stage` is the order of it all.
"""

from lora_eval.verify.arms import ArmPath, parse_arm_path
from lora_eval.verify.stage import Options, verify
from lora_eval.verify.tolerance import parse_tolerance

__all__ = ["ArmPath", "Options", "parse_arm_path", "parse_tolerance", "verify"]
