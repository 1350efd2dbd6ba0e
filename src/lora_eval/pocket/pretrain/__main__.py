"""Makes the pocket model: ``python -m lora_eval.pocket.pretrain --out DIR [--tokens N] [--minutes M]``.

Two processes of one thread each; the same command resumes an interrupted run from its last checkpoint.
``DIR/model`` is the finished model. ``echo 3000000 > DIR/finish-in-tokens`` ends a running run early: the
learning rate decays from then on, over that many tokens.
"""

import argparse
import os
from pathlib import Path

# A second thread on a shared core is slower than none, and this must be set before torch is loaded.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch.multiprocessing as mp

from ..tokenizer import save_tokenizer
from .checkpoint import export, load
from .run import Options, work


def _options() -> Options:
    parser = argparse.ArgumentParser(prog="python -m lora_eval.pocket.pretrain", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of checkpoints and of the model")
    parser.add_argument("--tokens", type=int, default=10_508_000, help="tokens to train on")
    parser.add_argument(
        "--minutes", type=float, default=170.0, help="decay early if the tokens would take longer"
    )
    parser.add_argument(
        "--decay-tokens", type=int, default=5_734_062, help="the last so many with a falling rate"
    )
    parser.add_argument("--muon-rate", type=float, default=0.015)
    parser.add_argument("--adam-rate", type=float, default=4e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--checkpoint-minutes", type=float, default=3.0)
    return Options(**vars(parser.parse_args()))


def main() -> None:
    """Trains, or goes on training, and exports the model."""
    options = _options()
    options.out.mkdir(parents=True, exist_ok=True)
    if not (options.out / "tokenizer").is_dir():
        save_tokenizer(options.out / "tokenizer")
    meeting = options.out / f"meeting-{os.getpid()}"
    if options.processes > 1:
        mp.spawn(work, (options, meeting.resolve().as_uri()), nprocs=options.processes)
    else:
        work(0, options, "")
    meeting.unlink(missing_ok=True)
    state = load(options.out)
    assert state is not None
    export(state["network"], options.out / "tokenizer", options.out / "model")
    print(f"model written to {options.out / 'model'}")


if __name__ == "__main__":
    main()
