"""Jinja templates of the reports: a sandbox, HTML escaped by default, undefined names an error."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_eval.resources import resource_folder

if TYPE_CHECKING:
    from jinja2.sandbox import SandboxedEnvironment


def render_template(name: str, **values: Any) -> str:
    """Return `templates/report/<name>` filled in; `.html.jinja` escapes every value."""
    return _environment().get_template(name).render(**values)


def _environment() -> SandboxedEnvironment:
    from jinja2 import FileSystemLoader, StrictUndefined
    from jinja2.sandbox import SandboxedEnvironment

    from lora_eval.reports import numbers, words

    environment = SandboxedEnvironment(
        loader=FileSystemLoader(resource_folder("templates") / "report"),
        autoescape=lambda name: name is not None and ".html" in name,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "count": numbers.count_text,
        "p": numbers.p_text,
        "seconds": numbers.seconds_text,
    }
    environment.globals |= {
        "difference": numbers.difference_text,
        "interval": numbers.interval_text,
        "mean": numbers.mean_text,
        "size": numbers.size_text,
        "unit_name": numbers.unit_name,
        "is_share": numbers.is_share,
        "mark": words.mark,
        "glyphs": words.GLYPHS,
        "labels": words.LABELS,
    }
    return environment
