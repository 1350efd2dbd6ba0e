"""Does a base fit a recipe? Decided by its config and its template's text, never by its name."""

from __future__ import annotations

from lora_eval.errors import ModelError
from lora_eval.fingerprint import sha256_text
from lora_eval.records import Recipe


def check_family(recipe: Recipe, model_type: str, template_text: str | None) -> None:
    """Return where the base fits. `template_text` is the tokenizer's own default text; a tokenizer without
    one (a base that was never tuned for chat) fits, since the recipe's template is put on it.

    Raises:
        ModelError: the model type or the template's text is another than the recipe was made for.
    """
    family = recipe.family
    unfit = f"the base does not fit recipe '{recipe.name}':"
    if family.model_type and model_type not in family.model_type:
        raise ModelError(
            f"{unfit} its config says model_type '{model_type}', the recipe is for "
            f"{' or '.join(map(repr, family.model_type))}; choose another recipe, or set family.model_type"
        )
    if not family.template_sha256 or template_text is None:
        return
    found = sha256_text(template_text)
    if found not in family.template_sha256:
        raise ModelError(
            f"{unfit} the sha256 of its chat template is {found}, the recipe is for "
            f"{' or '.join(family.template_sha256)}; a model tuned with another template should be tuned "
            "further with its own: choose another recipe, or set chat_template=null family.template_sha256=[]"
        )
