"""MT-Bench's categories as a radar picture: one SVG file, no library, no network."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from lora_eval.errors import InputError
from lora_eval.judges.mt_bench import CATEGORIES
from lora_eval.records import JudgeReport, MtBenchScore

# Okabe and Ito's colours and a dash for each, so that neither colour blindness nor a grey print hides a line.
_LINES = (
    ("#0072b2", ""),
    ("#d55e00", "6 3"),
    ("#009e73", "2 3"),
    ("#cc79a7", "8 3 2 3"),
    ("#000000", "1 2"),
    ("#e69f00", "10 4"),
)
_CENTER, _RADIUS, _TOP = 300, 210, 10.0


def radar(report: JudgeReport) -> str:
    """Return the picture of every model that has all eight categories.

    Raises:
        InputError: there is none, or there are more than can be told apart.
    """
    models = {
        name: [row.categories[category].score for category in CATEGORIES]
        for name, row in report.models.items()
        if isinstance(row, MtBenchScore) and len(row.categories) == len(CATEGORIES)
    }
    if not 0 < len(models) <= len(_LINES):
        raise InputError(
            f"--figure: {len(models)} models have a score in all eight categories; the picture shows one to "
            f"{len(_LINES)}"
        )
    height = 2 * _CENTER + 24 * len(models)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 600 {height}" font-family="sans-serif" '
        'font-size="14" role="img">',
        f"<title>{escape(_title(models))}</title>",
        f'<rect width="600" height="{height}" fill="white"/>',
        *_frame(),
        *_shapes(models),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _title(models: Mapping[str, Sequence[float]]) -> str:
    said = [
        f"{name}: {', '.join(f'{c} {score:.2f}' for c, score in zip(CATEGORIES, scores, strict=True))}"
        for name, scores in models.items()
    ]
    return f"MT-Bench scores by category. {'; '.join(said)}"


def _frame() -> list[str]:
    """Rings at 2, 4, ... 10, the axes and their names."""
    found = [
        f'<polygon points="{_points([level] * len(CATEGORIES))}" fill="none" stroke="#cccccc"/>'
        f'<text x="{_CENTER + 4}" y="{_CENTER - _RADIUS * level / _TOP - 2:.1f}" fill="#666666" '
        f'font-size="11">{level:g}</text>'
        for level in (2.0, 4.0, 6.0, 8.0, 10.0)
    ]
    for number, category in enumerate(CATEGORIES):
        x, y = _place(number, _TOP)
        found.append(f'<line x1="{_CENTER}" y1="{_CENTER}" x2="{x:.1f}" y2="{y:.1f}" stroke="#cccccc"/>')
        x, y = _place(number, _TOP * 1.17)
        found.append(f'<text x="{x:.1f}" y="{y + 5:.1f}" text-anchor="middle">{category}</text>')
    return found


def _shapes(models: Mapping[str, Sequence[float]]) -> list[str]:
    """One outline for each model, and its line of the legend."""
    found = []
    for number, ((name, scores), (colour, dash)) in enumerate(zip(models.items(), _LINES, strict=False)):
        style = f'stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}"'
        y = 2 * _CENTER - 8 + 24 * number
        found += [
            f'<polygon points="{_points(scores)}" fill="{colour}" fill-opacity="0.06" {style}/>',
            f'<line x1="30" y1="{y}" x2="70" y2="{y}" {style}/>',
            f'<text x="80" y="{y + 5}">{escape(name)}</text>',
        ]
    return found


def _points(scores: Sequence[float]) -> str:
    places = [_place(number, score) for number, score in enumerate(scores)]
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in places)


def _place(axis: int, score: float) -> tuple[float, float]:
    angle = 2.0 * math.pi * axis / len(CATEGORIES)
    length = _RADIUS * score / _TOP
    return _CENTER + length * math.sin(angle), _CENTER - length * math.cos(angle)
