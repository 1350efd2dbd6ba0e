"""The embedded base model, its small world, its data and its suite, all made by this package.

Nothing here imports torch; only the pretraining subpackage and the functions that load a model do.
"""

from pathlib import Path

__all__ = ["data_path", "model_path"]

_HERE = Path(__file__).resolve().parent


def model_path() -> Path:
    """The folder of the embedded base model, loadable with ``AutoModelForCausalLM`` and ``AutoTokenizer``."""
    return _HERE / "model"


def data_path() -> Path:
    """The folder of the packaged fine-tuning rows (JSON lines of ``{"messages": [...]}``)."""
    return _HERE / "data"
