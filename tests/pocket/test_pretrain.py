"""Pretraining: the schedule, whole samples in rows, and a resumed run that equals an undisturbed one."""

import pytest
import torch

from lora_eval.pocket.pretrain.batches import Encoder, batch
from lora_eval.pocket.pretrain.checkpoint import save
from lora_eval.pocket.pretrain.optimizer import orthogonalized
from lora_eval.pocket.pretrain.run import FINISH_FILE, Options, Run
from lora_eval.pocket.pretrain.schedule import Schedule
from lora_eval.pocket.tokenizer import save_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("run")
    save_tokenizer(path / "tokenizer")
    return path


def options(folder, tokens):
    return Options(folder, tokens, 60.0, tokens // 2, 0.015, 4e-3, 0, 1, 1000.0)


def test_schedule_warms_up_holds_and_decays_to_two_percent():
    schedule = Schedule(5_000_000, 10_000_000)
    assert schedule.factor(0) < 1e-4
    assert schedule.factor(200_000) == schedule.factor(5_000_000 - 1) == 1.0
    assert schedule.factor(7_500_000) == pytest.approx(0.51)
    assert schedule.factor(10_000_000) == pytest.approx(0.02)


@pytest.mark.parametrize("seen", [2_000_000, 7_500_000])
def test_finishing_early_goes_on_from_the_present_rate(seen):
    schedule = Schedule(5_000_000, 10_000_000)
    early = schedule.finishing_in(seen, 1_000_000)
    assert early.total == seen + 1_000_000
    assert early.factor(seen) == pytest.approx(schedule.factor(seen), abs=1e-6)
    assert early.factor(early.total) == pytest.approx(0.02)


def test_rows_hold_whole_samples_that_do_not_see_each_other(folder):
    from lora_eval.pocket.tokenizer import load_tokenizer

    encoder = Encoder(load_tokenizer(folder / "tokenizer"))
    ids, positions, mask, weights = batch(encoder, 0, 0, 0, 2, 0.1)
    assert ids.shape == (12, 128) and (ids != encoder.pad).float().mean() > 0.9
    starts = (positions == 0) & (ids != encoder.pad)
    assert starts.sum() > 30
    row = int(starts.sum(1).argmax())
    second = int(starts[row].nonzero()[1])
    assert (mask[row, 0, second:, :second] < 0).all() and mask[row, 0, second, second] == 0
    assert set(weights.unique().tolist()) <= {0.0, 0.5, 1.0}
    again = batch(encoder, 0, 0, 0, 2, 0.1)
    assert all(torch.equal(a, b) for a, b in zip((ids, positions, mask, weights), again, strict=True))


def test_orthogonalized_moves_singular_values_near_one():
    torch.manual_seed(0)
    for shape in ((2, 64, 192), (2, 192, 64)):
        values = torch.linalg.svdvals(orthogonalized(torch.randn(shape)))
        assert values.min() > 0.5 and values.max() < 1.5


def test_resumed_run_equals_an_undisturbed_one(folder):
    whole = Run(options(folder, 9_000), 0)
    whole.train()
    (folder / "checkpoint.pt").unlink()
    first = Run(options(folder, 9_000), 0)
    for _ in range(2):
        first._step()
    save(folder, first.state())
    second = Run(options(folder, 9_000), 0)
    second.train()
    assert (second.step, second.seen) == (whole.step, whole.seen)
    for name, value in whole.network.state_dict().items():
        assert torch.equal(value, second.network.state_dict()[name]), name
    (folder / "checkpoint.pt").unlink()


def test_finish_file_and_short_time_start_the_decay(folder):
    run = Run(options(folder, 10_000_000), 0)
    run.seen, run.seconds = 1_000_000, 200.0
    assert run._early() == 0
    (folder / FINISH_FILE).write_text("300000")
    run._replan()
    assert run.schedule.total == 1_300_000 and not (folder / FINISH_FILE).exists()
    late = Run(options(folder, 10_000_000), 0)
    late.seen, late.seconds = 1_000_000, 60 * 60 - 100.0
    assert late._early() == pytest.approx(100.0 * 1_000_000 / 3500, abs=1)
