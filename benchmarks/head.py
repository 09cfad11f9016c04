"""Heads on the cached tokens of one store: how fast they train, and what every part of the method is worth.

    python benchmarks/head.py --store STORE [--part PART ...] [--dev-rows N | --test] [--out FILE]

speed      seconds a head to finished accuracy, against a plain PyTorch loop (head_plain.py), and both accuracies
products   a training step against its bare matrix products, and where the rest goes
table      all methods with 100, 250, 1,000 and all labels
ablation   from the paper's objective to the default, one change at a time
terms      the paper's objective with terms left out, D_y at several weights, the other estimator
views      accuracy and seconds against the number of cached views
imbalance  the class priors on rows thinned to long tails

Accuracy is on the last --dev-rows training rows, which are then kept out of training; --test judges on the test split
instead, which nothing may be chosen on. Without --store the tokens of the digits are made for the run.
"""

import argparse
import os
import platform
import shlex
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import head_products
import head_rows
import head_speed
import torch
from head_bench import SEEDS_OF_ALL, Bench

from cspipe.config import Config, override, parse_settings
from cspipe.headtrain.rows import Labels, read_rows
from cspipe.headtrain.runs import environment, write_json
from cspipe.headtrain.study import METHODS
from cspipe.store import open_store
from cspipe.store.errors import CspipeError, SettingError, unknown_name

Told = argparse.Namespace
FEW_LABELS, TABLE_LABELS = [100], [100, 250, 1000, "all"]
MOST_DEV_ROWS, DEV_SHARE = 10_000, 5


def speed(bench: Bench, told: Told) -> dict[str, Any]:
    """Against the plain loop."""
    labels = (told.labels or FEW_LABELS)[0]
    return head_speed.measure(
        bench, labels=labels, heads=told.heads, rounds=told.rounds, timed_steps=told.timed_steps,
        compiled=not told.no_compile,
    )  # fmt: skip


def products(bench: Bench, told: Told) -> dict[str, Any]:
    """Against the bare products."""
    labels = (told.labels or FEW_LABELS)[0]
    return head_products.measure(
        bench, labels=labels, heads=told.heads, rounds=told.rounds, timed_steps=told.timed_steps
    )


def views(bench: Bench, told: Told) -> list[head_rows.Row]:
    """Against the number of views."""
    return head_rows.compare(bench, told.labels or FEW_LABELS, "Views", head_rows.views(bench, told.views))


def imbalance(bench: Bench, told: Told) -> list[head_rows.Row]:
    """Class priors on long tails."""
    found: list[head_rows.Row] = []
    for apart in told.apart:
        thinned, variants = head_rows.imbalance(bench, apart)
        title = (
            f"Commonest class {apart:g} times the rarest, {len(thinned.rows.label_N)} training rows, "
            f"{judged_rows(thinned)} judged"
        )
        rows = head_rows.compare(thinned, told.labels or FEW_LABELS, title, variants, told.rows)
        found += [{"apart": apart, **row} for row in rows]
    return found


PARTS: dict[str, Callable[[Bench, Told], Any]] = {
    "speed": speed,
    "products": products,
    "table": lambda bench, told: head_rows.table(bench, told.labels or TABLE_LABELS, told.methods),
    "ablation": lambda bench, told: head_rows.compare(
        bench, told.labels or FEW_LABELS, "Ablation", head_rows.ablation(bench), told.rows
    ),
    "terms": lambda bench, told: head_rows.compare(
        bench, told.labels or FEW_LABELS, "Terms of the paper's objective", head_rows.terms(bench), told.rows
    ),
    "views": views,
    "imbalance": imbalance,
}


def labels_of(told: str) -> Labels:
    """A number, or `all`."""
    return "all" if told == "all" else int(told)


def parse(arguments: list[str] | None) -> Told:
    """The command's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, help="Zarr group of tokens")
    parser.add_argument("--part", nargs="+", choices=PARTS, default=["speed", "products"])
    rows = parser.add_mutually_exclusive_group()
    rows.add_argument("--dev-rows", type=int, help="default: 10,000, or a fifth of the training rows if that is fewer")
    rows.add_argument("--test", action="store_true", help="judge on the test split")
    parser.add_argument(
        "--labels", type=labels_of, nargs="+", help="labelled rows in all, or 'all'; the first for speed and products"
    )
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument(
        "--train-seeds", type=int, default=3, help=f"heads a split; all labels are one split and {SEEDS_OF_ALL} heads"
    )
    parser.add_argument("--methods", nargs="+", default=list(METHODS), help="of the table")
    parser.add_argument("--views", type=int, nargs="+", default=[0, 1, 2, 4, 8], help="of the part views")
    parser.add_argument(
        "--rows", type=int, nargs="+", help="of ablation, terms and imbalance: only these, counted from 0"
    )
    parser.add_argument(
        "--apart", type=float, nargs="+", default=list(head_rows.SHARES_APART),
        help="of imbalance: the commonest class is so much commoner than the rarest",
    )  # fmt: skip
    parser.add_argument("--heads", type=int, nargs="+", default=[1, 5, 15], help="heads at once, of speed and products")
    parser.add_argument("--rounds", type=int, default=9, help="timed blocks of each, alternating")
    parser.add_argument("--timed-steps", type=int, default=100, help="steps of a block")
    parser.add_argument("--no-compile", action="store_true", help="do not try torch.compile on the plain loop")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of the head")
    parser.add_argument("--steps", type=int, help="of every training, in place of its own: to try this program out")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="keep all figures in this JSON file")
    return parser.parse_args(arguments)


def make_bench(told: Told, store: Path) -> Bench:
    """Reads the rows.

    Raises:
        SettingError: a method or setting that does not exist, or nothing to judge on.
    """
    for method in told.methods:
        if method not in METHODS:
            raise unknown_name("method", method, METHODS)
    settings = override(Config(), parse_settings(told.set)).head.settings
    dev_rows = told.dev_rows
    if dev_rows is None:
        dev_rows = 0 if told.test else min(MOST_DEV_ROWS, len(open_store(store)["train"].label()) // DEV_SHARE)
    rows = read_rows(store, dev_rows=dev_rows, views=max(settings.views, *told.views))
    if rows.evaluation != ("test" if told.test else "dev"):
        raise SettingError(f"{store.name} has no labelled test split: leave out --test.")
    return Bench(rows, settings, told.splits, told.train_seeds, told.steps)


def judged_rows(bench: Bench) -> int:
    """Rows that accuracy is measured on."""
    return 0 if bench.rows.eval_label_M is None else len(bench.rows.eval_label_M)


def digits(folder: Path) -> Path:
    """A store of the digits' tokens."""
    from cspipe.extract.run import extract

    return Path(extract("lite0", "digits", stores=folder)["store"])


def introduce(bench: Bench, store: Path, threads: int) -> None:
    """What was run, on what, with what."""
    rows = bench.rows
    print(f"{shlex.join(['python', *sys.argv])}\n{store.name}: {len(rows.label_N)} training rows of "
          f"{rows.token_ND.shape[1]}, {len(rows.view_VND)} views, judged on "
          f"{judged_rows(bench)} {rows.evaluation} rows")  # fmt: skip
    named = ", ".join(f"{name} {version(name)}" for name in ("torch", "numpy", "scikit-learn"))
    print(f"{platform.machine()}, {os.cpu_count()} cores, {threads} threads, {named}", flush=True)


def main(arguments: list[str] | None = None) -> None:
    """Measures and prints."""
    told = parse(arguments)
    torch.set_num_threads(told.threads)
    with ExitStack() as stack:
        store = told.store or digits(Path(stack.enter_context(tempfile.TemporaryDirectory())))
        try:
            bench = make_bench(told, store)
            introduce(bench, store, told.threads)
            begun = time.perf_counter()
            found = {part: PARTS[part](bench, told) for part in told.part}
        except CspipeError as error:
            sys.exit(f"benchmarks/head.py: {error}")
    if told.out:
        write_json(told.out, {
            "command": sys.argv, "store": store.name, "evaluation": bench.rows.evaluation, "threads": told.threads,
            "rows": {"train": len(bench.rows.label_N), "views": len(bench.rows.view_VND)},
            "settings": asdict(bench.settings), "environment": environment(),
            "seconds": time.perf_counter() - begun, "parts": found,
        })  # fmt: skip


if __name__ == "__main__":
    main()
