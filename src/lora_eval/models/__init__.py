"""Open what an arm names: folders found, adapters checked against their base, weights loaded once and shared.

`locate` finds folders, `adapters` checks an adapter before anything is loaded, `lineage` reads and writes
`lineage.json`, `resident` loads. The home of peft for evaluation; transformers is imported inside functions.
"""

from lora_eval.models.adapters import check_adapter, needs_own_base
from lora_eval.models.lineage import (
    hardware_info,
    package_versions,
    peak_memory_gib,
    read_lineage,
    write_lineage,
)
from lora_eval.models.locate import parse_arm, resolve_adapter, resolve_model
from lora_eval.models.resident import (
    IDENTITY,
    NF4,
    Resident,
    load_base,
    load_tokenizer,
    open_adapter,
    open_folder,
    open_resident,
)

__all__ = [
    "IDENTITY",
    "NF4",
    "Resident",
    "check_adapter",
    "hardware_info",
    "load_base",
    "load_tokenizer",
    "needs_own_base",
    "open_adapter",
    "open_folder",
    "open_resident",
    "package_versions",
    "peak_memory_gib",
    "parse_arm",
    "read_lineage",
    "resolve_adapter",
    "resolve_model",
    "write_lineage",
]
