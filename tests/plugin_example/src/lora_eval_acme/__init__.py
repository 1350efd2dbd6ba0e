"""What acme adds to lora-eval: a recipe, a chat template, a suite with a task of its own, an exporter."""

import shutil
from importlib.resources import files

from lora_eval import ChatTemplate, EvalSuite, Lineage, Recipe, Variant

_TEXT = (files(__name__) / "acme.jinja").read_text("utf-8")
_PLAIN = _TEXT.replace("{%- generation -%}", "").replace("{%- endgeneration -%}", "")
_DATA = {"files": ("lora_eval_acme:support.jsonl",)}

RECIPE = Recipe(
    name="acme-support", lora={"r": 8, "target_modules": "all-linear"}, data=_DATA, chat_template="acme"
)

SUITE = EvalSuite(
    name="acme-arithmetic", version="1", tasks=("acme_sums",), include_path="lora_eval_acme:tasks"
)


def template():
    return ChatTemplate(name="acme", default=_PLAIN, training=_TEXT, stop_tokens=("<|im_end|>",))


class CopyExporter:
    """Ships a model folder as it is."""

    name, kind, options = "acme-copy", "merged", ()

    def export(self, request):
        shutil.copytree(request.base, request.out, dirs_exist_ok=True)
        return Lineage(variants=(Variant(kind="base", path=str(request.base)),))
