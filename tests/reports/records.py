"""Records that the tests of reports share."""

from __future__ import annotations

from lora_eval.records import LossPoint, ReloadCheck, RowCounts, TrainingLog


def make_training_log(**changes: object) -> TrainingLog:
    """A training with evaluation rows, of whose data four things are worth telling."""
    rows = RowCounts(
        read=1000, without_assistant=3, untrained=2, cut=7, cut_in_answer=5, used=988, tokens=90_000,
        trained_tokens=40_000, turns=1100, turns_without_end=4,
    )  # fmt: skip
    curve = [LossPoint(step=step, loss=3.0 / (1 + step / 20)) for step in range(10, 210, 10)]
    curve += [LossPoint(step=step, eval_loss=3.2 / (1 + step / 25)) for step in (100, 200)]
    values = {
        "recipe": "mine",
        "base": "some/base",
        "rows": rows,
        "eval_rows": RowCounts(read=50, used=50, tokens=4_000, trained_tokens=2_000, turns=50),
        "steps": 200,
        "epochs": 1.5,
        "trained_tokens": 60_000,
        "trainable_parameters": 1_234_567,
        "loss_start": 2.0,
        "loss_end": 0.27,
        "curve": tuple(curve),
        "wall_seconds": 754.0,
        "peak_memory_gib": 9.37,
        "reload": ReloadCheck(tokens=181, equal=True, max_difference=0.0, effect=2.0),
        "notes": ("resumed once",),
    }
    return TrainingLog(**(values | changes))
