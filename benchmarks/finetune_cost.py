"""What a regulariser costs: seconds of a step with it, as a ratio to the step without any.

    python benchmarks/finetune_cost.py --head RUN [--stores DIR] [--regularisers rift r3f ...] [--rounds 9]

Steps with and without alternate, each round a block of --steps; the ratio is that of the medians. A step is the
product's own: decoding is left out, forward and backward passes, the head and the optimiser are in.
"""

import argparse
import os
import platform
import statistics
import sys
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import torch

from cspipe.finetune.load import choose_head, load_all, store_of_head
from cspipe.finetune.optimise import optimisers
from cspipe.finetune.plan import plan_batches
from cspipe.finetune.regularisers import REGULARISERS, check_names
from cspipe.finetune.run import make_parts, prepare
from cspipe.finetune.settings import FinetuneSettings
from cspipe.finetune.step import Pass, take_step
from cspipe.finetune.train import set_rates
from cspipe.finetune.world import ALONE
from cspipe.store.errors import CspipeError


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--head", type=Path, required=True, help="head run to start from")
    parser.add_argument("--stores", type=Path, default=Path("stores"))
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--regularisers", nargs="+", default=list(REGULARISERS))
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--labelled-batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=2, help="of a block")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args(arguments)


def measure(told: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds a step, one value a round, by name; the empty name is the step without a regulariser."""
    settings = FinetuneSettings(
        batch=told.batch, labelled_batch=told.labelled_batch, regularisers=dict.fromkeys(told.regularisers, 0.1)
    )
    device = torch.device(told.device)
    saved = choose_head(told.head, told.head.parent, None, 0, told.device)
    store = store_of_head(saved, None, told.stores)
    loaded = load_all(saved, store, settings, weights=None, data_dir=told.data_dir, device=told.device)
    prepare(loaded, settings)
    parts = make_parts(loaded, settings, device, ALONE)
    made, batch = optimisers(parts.model, settings), plan_batches(loaded.train, settings, 0)[0]
    one = Pass(batch, loaded.train.images.batch(batch))
    set_rates(made, settings, 0, 1_000_000, 0)
    parts.model.learn()
    seconds: dict[str, list[float]] = {name: [] for name in ("", *told.regularisers)}
    for number in range(told.rounds + 1):
        for name, spent in seconds.items():
            chosen = replace(settings, regularisers={name: 0.1} if name else {})
            began = time.perf_counter()
            for _ in range(told.steps):
                take_step(parts, loaded.train, [one], made, chosen, torch.Generator(device).manual_seed(0))
            if number:  # the first round warms up
                spent.append((time.perf_counter() - began) / told.steps)
    return seconds


def main(arguments: list[str] | None = None) -> None:
    """Measures and prints a table."""
    told = parse(arguments)
    torch.set_num_threads(told.threads)
    try:
        check_names(told.regularisers)
        seconds = measure(told)
    except CspipeError as error:
        sys.exit(f"benchmarks/finetune_cost.py: {error}")
    print(f"{platform.machine()}, {os.cpu_count()} cores, {told.threads} threads, torch {version('torch')}, "
          f"{told.labelled_batch} + {told.batch} images a step, {told.rounds} rounds of {told.steps}\n")  # fmt: skip
    print("| regulariser | seconds a step | ratio to none |\n|---|---|---|")
    plain = statistics.median(seconds[""])
    for name, spent in seconds.items():
        median = statistics.median(spent)
        print(f"| {name or 'none'} | {median:.3f} | {median / plain:.2f} |")


if __name__ == "__main__":
    main()
