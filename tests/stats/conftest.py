"""Property tests without a time limit for each example: the machine may be busy."""

from hypothesis import settings

settings.register_profile("lora-eval", deadline=None, max_examples=50, derandomize=True)
settings.load_profile("lora-eval")
