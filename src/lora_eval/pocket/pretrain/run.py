"""The training loop of one process; all processes see the same schedule and end at the same step."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..tokenizer import load_tokenizer
from .batches import Encoder, batch, copy_share
from .checkpoint import load, save
from .network import PocketLlama, Shape
from .optimizer import Muon
from .schedule import Schedule

_LOG_EVERY = 50
#: A file of this name in the run's folder, holding a number of tokens, starts the decay at once.
FINISH_FILE = "finish-in-tokens"


@dataclass(frozen=True)
class Options:
    """What the command line says."""

    out: Path
    tokens: int
    minutes: float
    decay_tokens: int
    muon_rate: float
    adam_rate: float
    seed: int
    processes: int
    checkpoint_minutes: float


class Run:
    """One process's state of a pretraining run."""

    def __init__(self, options: Options, rank: int) -> None:
        torch.manual_seed(options.seed)
        self.options, self.rank, self.world = options, rank, options.processes
        self.encoder = Encoder(load_tokenizer(options.out / "tokenizer"))
        self.network = PocketLlama(Shape())
        matrices = [p for n, p in self.network.named_parameters() if p.ndim == 2 and "embed" not in n]
        others = [p for n, p in self.network.named_parameters() if p.ndim == 1 or "embed" in n]
        self.muon = Muon(matrices)
        self.adam = torch.optim.AdamW(others, lr=options.adam_rate, betas=(0.9, 0.95), weight_decay=0.0)
        self.schedule = Schedule(options.tokens - options.decay_tokens, options.tokens)
        self.step, self.seen, self.seconds = 0, 0, 0.0
        self._resume()

    def _resume(self) -> None:
        state = load(self.options.out)
        if state is None:
            return
        self.network.load_state_dict(state["network"])
        self.muon.load_state_dict(state["muon"])
        self.adam.load_state_dict(state["adam"])
        self.step, self.seen, self.seconds = state["step"], state["seen"], state["seconds"]
        self.schedule = Schedule(**state["schedule"])

    def state(self) -> dict[str, Any]:
        """Everything that a resumed run needs."""
        return {
            "network": self.network.state_dict(),
            "muon": self.muon.state_dict(),
            "adam": self.adam.state_dict(),
            "step": self.step,
            "seen": self.seen,
            "seconds": self.seconds,
            "schedule": self.schedule.as_dict(),
        }

    def train(self) -> None:
        """Trains until the schedule ends; process 0 logs and saves."""
        started, saved, summed, counted = time.monotonic() - self.seconds, time.monotonic(), 0.0, 0.0
        window_start, window_seen = time.monotonic(), self.seen
        while self.seen < self.schedule.total:
            loss, weight = self._step()
            summed, counted = summed + loss, counted + weight
            self.seconds = time.monotonic() - started
            if self.step % _LOG_EVERY:
                continue
            speed = (self.seen - window_seen) / (time.monotonic() - window_start)
            window_start, window_seen = time.monotonic(), self.seen
            self._log(summed / counted, speed)
            summed = counted = 0.0
            self._replan()
            if self.rank == 0 and time.monotonic() - saved > 60 * self.options.checkpoint_minutes:
                save(self.options.out, self.state())
                saved = time.monotonic()
        if self.rank == 0:
            save(self.options.out, self.state())

    def _step(self) -> tuple[float, float]:
        """One optimizer step; returns the summed weighted loss and the summed weight of all processes."""
        factor = self.schedule.factor(self.seen)
        share = copy_share(self.seen)
        ids, positions, mask, weights = batch(
            self.encoder, self.options.seed, self.step, self.rank, self.world, share
        )
        with torch.autocast("cpu", torch.bfloat16):
            loss = self.network.loss(ids, positions, mask, weights)
        loss.backward()
        real = (ids != self.encoder.pad).sum()
        totals = self._shared(torch.stack((loss.detach(), weights.sum(), real.float())))
        self.muon.step(self.options.muon_rate * factor, self.rank, self.world)
        for group in self.adam.param_groups:
            group["lr"] = self.options.adam_rate * factor
        self.adam.step()
        self.network.zero_grad(set_to_none=True)
        self.step += 1
        self.seen += int(totals[2])
        return float(totals[0]), float(totals[1])

    def _shared(self, totals: Tensor) -> Tensor:
        """Sums gradients and ``totals`` over the processes; divides the gradients by the summed weight."""
        parameters = list(self.network.parameters())
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([*(g.flatten() for g in gradients), totals])
        if self.world > 1:
            dist.all_reduce(flat)
        totals = flat[-len(totals) :].clone()
        flat = flat / totals[1]
        start = 0
        for gradient in gradients:
            gradient.copy_(flat[start : start + gradient.numel()].view_as(gradient))
            start += gradient.numel()
        return totals

    def _log(self, loss: float, speed: float) -> None:
        if self.rank == 0:
            factor = self.schedule.factor(self.seen)
            print(
                f"step {self.step} tokens {self.seen / 1e6:.2f}M of {self.schedule.total / 1e6:.1f}M "
                f"loss {loss:.4f} "
                f"rate {factor:.3f} speed {speed:.0f}/s minutes {self.seconds / 60:.1f}",
                flush=True,
            )

    def _replan(self) -> None:
        """Starts the decay early when the finish file asks, or when the minutes would not last."""
        wanted = torch.tensor([self._early() if self.rank == 0 else 0])
        if self.world > 1:
            dist.broadcast(wanted, 0)
        if int(wanted):
            self.schedule = self.schedule.finishing_in(self.seen, int(wanted))
            if self.rank == 0:
                print(f"decay from now on, {int(wanted)} tokens left", flush=True)

    def _early(self) -> int:
        """Tokens to finish in, or 0 to leave the schedule as it is."""
        asked = self.options.out / FINISH_FILE
        if asked.is_file():
            tokens = int(asked.read_text())
            asked.unlink()
            return tokens
        if self.seen >= self.schedule.decay_start:
            return 0
        # The mean speed of the whole run: on shared cores that of 50 steps varies by a factor of five.
        fitting = self.seen / self.seconds * (60 * self.options.minutes - self.seconds)
        share = self.options.decay_tokens / self.options.tokens
        decays = fitting <= self.seen * share / (1 - share)
        return max(int(fitting), 3072) if decays and fitting < self.schedule.total - self.seen else 0


def work(rank: int, options: Options, meeting: str) -> None:
    """One process of a run; ``meeting`` is the URL where the processes find each other."""
    torch.set_num_threads(1)
    if options.processes > 1:
        dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=options.processes)
    Run(options, rank).train()
    if options.processes > 1:
        dist.destroy_process_group()
