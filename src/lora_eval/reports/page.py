"""Jinja templates of the reports: a sandbox, HTML escaped by default, undefined names an error."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_eval.resources import resource_folder

if TYPE_CHECKING:
    from jinja2.sandbox import SandboxedEnvironment


def render_template(name: str, **values: Any) -> str:
    """Return `templates/report/<name>` (or `cards/<name>`) filled in; `.html.jinja` escapes every value."""
    return _environment().get_template(name).render(**values)


def read_template(name: str) -> str:
    """Return the text of a file that goes into a page as it is (a script)."""
    return (resource_folder("templates") / "report" / name).read_text("utf-8")


def _environment() -> SandboxedEnvironment:
    from jinja2 import FileSystemLoader, StrictUndefined
    from jinja2.sandbox import SandboxedEnvironment

    from lora_eval.reports import numbers, words

    environment = SandboxedEnvironment(
        loader=FileSystemLoader([resource_folder("templates") / folder for folder in ("report", "cards")]),
        autoescape=lambda name: name is not None and ".html" in name,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "about": numbers.about_text,
        "count": numbers.count_text,
        "p": numbers.p_text,
        "seconds": numbers.seconds_text,
    }
    environment.globals |= {
        "difference": numbers.difference_text,
        "interval": numbers.interval_text,
        "margin": numbers.margin_text,
        "mean": numbers.mean_text,
        "run_differences": numbers.run_differences_text,
        "size": numbers.size_text,
        "ratio": numbers.ratio_text,
        "ratio_interval": numbers.ratio_interval_text,
        "unit_name": numbers.unit_name,
        "is_share": numbers.is_share,
        "mark": words.mark,
        "glyphs": words.GLYPHS,
        "labels": words.LABELS,
    }
    return environment
