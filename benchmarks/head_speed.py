"""Seconds a head to finished accuracy, against the plain loop of head_plain.py, in one run.

Blocks of steps of both alternate; the median step, times the steps of a whole training, plus what comes before it, is
the time of a training. Accuracy is that of whole trainings on the same labelled splits and judged rows.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from head_bench import Bench, Ready, accuracies, heading, make_ready, points, say, share
from head_plain import STEPS, PlainHead, PlainLoop, standardise

from cspipe.headtrain.evaluate import difference
from cspipe.headtrain.rows import Labels
from cspipe.headtrain.settings import MAIN_METHOD
from cspipe.headtrain.study import Study


def measure(
    bench: Bench, *, labels: Labels, heads: Sequence[int], rounds: int, timed_steps: int, compiled: bool
) -> dict[str, Any]:
    """Measures and prints; one row a number of heads."""
    alone = bench.study(labels, bench.settings, heads=bench.splits)
    labelled = [torch.from_numpy(trial.labelled) for trial in alone.trials]
    begun = time.perf_counter()
    eager, judged_MD = make_loop(alone)
    set_up = time.perf_counter() - begun
    loop, name = faster(eager, labelled[0], timed_steps) if compiled else (eager, "plain loop, eager")
    ready = [make_ready(bench.study(labels, bench.settings, heads=count)) for count in heads]
    step, *steps = alternate(loop, labelled[0], ready, rounds, timed_steps)
    heading(
        f"Speed, {labels} labels, n = {rounds} alternating blocks of {timed_steps} steps, medians",
        "what", "heads at once", "set-up s", "ms a step", "steps", "seconds a head", "times as fast",
        "whole training, s a head", "accuracy", "minus plain, points", "95 % interval, paired",
    )  # fmt: skip
    whole = bench.steps or STEPS
    plain = {
        "what": name, "heads": 1, "set_up_seconds": set_up, "step_seconds": step, "steps": whole,
        "seconds_a_head": set_up / len(labelled) + step * whole,
        **whole_plain(loop, labelled, judged_MD, whole, alone),
    }  # fmt: skip
    tell(plain, plain)
    rows = [plain]
    for one, step in zip(ready, steps, strict=True):
        rows.append(our_row(bench, labels, one, step, plain))
        tell(rows[-1], plain)
    return {"labels": labels, "rounds": rounds, "timed_steps": timed_steps, "rows": rows}


def make_loop(study: Study) -> tuple[PlainLoop, torch.Tensor]:
    """The plain loop on all training rows, and the judged rows for it."""
    rows = study.rows
    assert isinstance(rows.token_ND, torch.Tensor), "the rows are resident"
    token_ND, judged_MD = standardise(rows.token_ND, study.judged_tokens(study.trials[0]))
    net = PlainHead(token_ND.shape[1], rows.classes)
    return PlainLoop(net, token_ND, torch.from_numpy(rows.label_N), net.generator_loss, net.critic_loss), judged_MD


def faster(loop: PlainLoop, labelled: torch.Tensor, steps: int) -> tuple[PlainLoop, str]:
    """The plain loop as it is or under torch.compile, whichever is faster once it is warm."""
    eager = block_seconds(lambda: loop.train(labelled, steps))
    print(f"\nplain loop, eager: {1e3 * eager / steps:.1f} ms a step", flush=True)
    net = loop.net
    try:
        other = PlainLoop(
            net, loop.token_ND, loop.label_N, torch.compile(net.generator_loss), torch.compile(net.critic_loss)
        )
        begun = time.perf_counter()
        other.train(labelled, 1)
        spent = time.perf_counter() - begun
        quick = block_seconds(lambda: other.train(labelled, steps))
    except Exception as error:  # whatever the compiler of this machine does
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        print(f"plain loop, torch.compile failed: {reason}", flush=True)
        return loop, "plain loop, eager"
    print(f"plain loop, torch.compile: {1e3 * quick / steps:.1f} ms a step, after {spent:.0f} s of compiling, "
          "which is not counted", flush=True)  # fmt: skip
    return (other, "plain loop, torch.compile") if quick < eager else (loop, "plain loop, eager")


def block_seconds(call: Callable[[], object]) -> float:
    """Wall time of the second of two calls."""
    call()
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def alternate(
    loop: PlainLoop, labelled: torch.Tensor, ready: Sequence[Ready], rounds: int, steps: int
) -> list[float]:  # fmt: skip
    """Median seconds of a step: of the plain loop, then of each number of heads; the first round warms up."""
    times: list[list[float]] = [[] for _ in range(1 + len(ready))]
    for repeat in range(rounds + 1):
        begun = time.perf_counter()
        loop.train(labelled, steps)
        spent = [(time.perf_counter() - begun) / steps, *(one.seconds_a_step(steps) for one in ready)]
        for kept, value in zip(times, spent, strict=True):
            if repeat:
                kept.append(value)
    return [statistics.median(kept) for kept in times]


def whole_plain(
    loop: PlainLoop, labelled: Sequence[torch.Tensor], judged_MD: torch.Tensor, steps: int, study: Study
) -> dict[str, Any]:  # fmt: skip
    """Whole trainings of the plain loop, one a split."""
    probabilities, spent = [], 0.0
    for at_L in labelled:
        loop.net.restart(0)
        begun = time.perf_counter()
        loop.train(at_L, steps)
        spent += (time.perf_counter() - begun) / len(labelled)
        probabilities.append(loop.net.probabilities(judged_MD))
    return {"whole_seconds_a_head": spent, "by_split": accuracies(study, probabilities)}


def our_row(bench: Bench, labels: Labels, ready: Ready, step: float, plain: dict[str, Any]) -> dict[str, Any]:
    """So many heads at once, beside the plain loop."""
    row = {
        "what": MAIN_METHOD, "heads": ready.heads, "set_up_seconds": ready.set_up_seconds, "step_seconds": step,
        "steps": ready.steps, "seconds_a_head": (ready.set_up_seconds + step * ready.steps) / ready.heads,
        **whole_ours(bench, labels, ready.heads),
    }  # fmt: skip
    row["times_as_fast"] = plain["seconds_a_head"] / row["seconds_a_head"]
    return row | {"versus_plain": difference(row["by_split"], plain["by_split"])}


def whole_ours(bench: Bench, labels: Labels, heads: int) -> dict[str, Any]:
    """Whole trainings of so many heads at once."""
    study = bench.study(labels, bench.settings, heads=heads)
    begun = time.perf_counter()
    heads_at_once, _ = study.fit(MAIN_METHOD, study.trials)
    spent = (time.perf_counter() - begun) / heads
    judged = [study.judged_tokens(trial) for trial in study.trials]
    said = [head.probabilities(token_MD) for head, token_MD in zip(heads_at_once, judged, strict=True)]
    return {"whole_seconds_a_head": spent, "by_split": accuracies(study, said)}


def tell(row: dict[str, Any], plain: dict[str, Any]) -> None:
    """One row of the table."""
    mean = statistics.mean(row["by_split"].values())
    say(
        row["what"], row["heads"], f"{row['set_up_seconds']:.2f}", f"{1e3 * row['step_seconds']:.2f}", row["steps"],
        f"{row['seconds_a_head']:.2f}", f"{plain['seconds_a_head'] / row['seconds_a_head']:.1f}",
        f"{row['whole_seconds_a_head']:.2f}", f"{share(mean)} ({len(row['by_split'])} splits)",
        *points(row.get("versus_plain")),
    )  # fmt: skip
