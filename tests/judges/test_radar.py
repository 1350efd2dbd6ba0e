"""The radar picture: every score where it belongs, in a file that any XML reader takes."""

from __future__ import annotations

import math
from xml.etree import ElementTree

import pytest

from lora_eval.errors import InputError
from lora_eval.judges.mt_bench import CATEGORIES, questions
from lora_eval.judges.mt_report import report_ratings
from lora_eval.judges.mt_rows import Rating
from lora_eval.judges.radar import radar

SVG = "{http://www.w3.org/2000/svg}"


def report(*names: str, missing: str = ""):
    ratings = [
        Rating(
            name,
            "j",
            str(q.id),
            q.category,
            turn,
            float(1 + (CATEGORIES.index(q.category) + place) % 10),
            None,
        )
        for place, name in enumerate(names)
        for q in questions().values()
        if q.category != missing
        for turn in (1, 2)
    ]
    return report_ratings(ratings, [])


def test_corners_are_the_scores():
    names = ("base", "<tuned> & co")
    root = ElementTree.fromstring(radar(report(*names)))
    shapes = root.findall(f"{SVG}polygon")[5:]
    assert len(shapes) == 2
    for place, shape in enumerate(shapes):
        corners = [tuple(map(float, point.split(","))) for point in shape.get("points").split()]
        found = [math.hypot(x - 300, y - 300) / 21 for x, y in corners]
        assert found == pytest.approx([1 + (axis + place) % 10 for axis in range(8)], abs=0.01)
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert set(CATEGORIES) | set(names) <= set(texts)
    assert "writing 1.00" in root.find(f"{SVG}title").text


@pytest.mark.parametrize("made", [report("base", missing="math"), report(*map(str, range(7)))])
def test_what_cannot_be_drawn_is_refused(made):
    with pytest.raises(InputError, match="the picture shows one to 6"):
        radar(made)


def test_the_command_writes_it(run_cli, tmp_path, write_rows):
    rows = [
        {"question_id": q.id, "turn": turn, "model": "m", "judge": ["j", "p"], "score": 5}
        for q in questions().values()
        for turn in (1, 2)
    ]
    out = tmp_path / "figure.svg"
    result = run_cli(
        "judge", "report", "--suite", "mt-bench", "--annotations", write_rows(rows), "--figure", out
    )
    assert (result.status, result.stderr) == (0, f"wrote {out}\n")
    assert ElementTree.parse(out).getroot().tag == f"{SVG}svg"
