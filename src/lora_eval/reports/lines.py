"""Line charts: the loss of a training, and differences over versions, in percent of the plot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lora_eval.records import TrainingLog
from lora_eval.reports.charts import Axis, Tick, make_axis


@dataclass(frozen=True, slots=True)
class Dot:
    """A marked place: 0 to 100 from the left and from the bottom; `marker` instead of the line's."""

    x: float
    y: float
    tooltip: str
    verdict: str = ""
    href: str = ""
    marker: str = ""


@dataclass(frozen=True, slots=True)
class Line:
    """One line: its `path` (and `band`, the area of its intervals) as SVG points, y counted from the top."""

    colour: str
    marker: str
    path: str
    dots: tuple[Dot, ...]
    band: str = ""
    dashed: bool = False


@dataclass(frozen=True, slots=True)
class Chart:
    """What the template draws. `links` says whether its dots lead somewhere."""

    label: str
    caption: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    series: tuple[Line, ...]
    links: bool = False


def svg_points(places: Sequence[tuple[float, float]]) -> str:
    """Places as an SVG list of points: y counts from the top there."""
    return " ".join(f"{x:g},{100 - y:g}" for x, y in places)


def loss_chart(log: TrainingLog) -> Chart | None:
    """Return the loss over the steps; None where fewer than two points were logged."""
    train = [(point.step, point.loss) for point in log.curve if point.loss is not None]
    held = [(point.step, point.eval_loss) for point in log.curve if point.eval_loss is not None]
    if len(train) < 2:
        return None
    x = make_axis([step for step, _ in (*train, *held)], smallest=1.0)
    x = Axis(0.0, float(max(step for step, _ in (*train, *held))), x.step)
    y = make_axis([loss for _, loss in (*train, *held)], parts=4)
    y = Axis(max(0.0, y.low), y.high, y.step)
    series = [_loss_line(train, x, y, "arm1", "circle", "training")]
    if held:
        series.append(_loss_line(held, x, y, "arm2", "square", "evaluation", dashed=True))
    return Chart(
        label=f"Training loss from {train[0][1]:.3g} to {train[-1][1]:.3g} over {train[-1][0]} steps",
        caption="Loss in nats per trained token, over steps",
        x_ticks=tuple(x.ticks()),
        y_ticks=tuple(y.ticks()),
        series=tuple(series),
    )


def _loss_line(
    points: Sequence[tuple[int, float]],
    x: Axis,
    y: Axis,
    colour: str,
    marker: str,
    name: str,
    dashed: bool = False,
) -> Line:
    places = [(x.at(step), y.at(loss)) for step, loss in points]
    dots = tuple(
        Dot(*place, tooltip=f"step {step}: {name} loss {loss:.3f}")
        for place, (step, loss) in zip(places, points, strict=True)
    )
    return Line(
        colour, marker, svg_points(places), dots if len(dots) <= 60 else (dots[0], dots[-1]), dashed=dashed
    )
