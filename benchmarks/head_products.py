"""A stacked training step against its bare matrix products, and what the rest of it is.

The products are those that real steps make, forward and backward, as the dispatcher sees them: shapes, strides and
number. They are then done alone, into buffers that are there already.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from head_bench import Bench, Ready, heading, make_ready, say
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from cspipe.headtrain import train
from cspipe.headtrain.rows import Labels

aten = torch.ops.aten
FIRST_FACTOR = {aten.mm: 0, aten.bmm: 0, aten.addmm: 1, aten.baddbmm: 1, aten.addmm_: 1, aten.baddbmm_: 1}
"""Product -> where its first factor stands; the second comes right after it."""

TOP = 10


@dataclass(frozen=True)
class Layout:
    """How a factor lies in memory."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    def filled(self) -> Tensor:
        """A factor that lies so, of random numbers."""
        last = sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))
        return torch.randn(last + 1, dtype=self.dtype).as_strided(self.shape, self.stride)


@dataclass(frozen=True)
class Product:
    """One matrix product, `(..., m, k)` by `(..., k, n)`."""

    left: Layout
    right: Layout

    @property
    def operations(self) -> int:
        """Multiplications and additions."""
        count = 2 * self.right.shape[-1]
        for size in self.left.shape:
            count *= size
        return count


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes every matrix product that is made while it is on."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.products: list[Product] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        first = FIRST_FACTOR.get(func.overloadpacket)
        if first is not None:
            left, right = (Layout(tuple(f.shape), f.stride(), f.dtype) for f in args[first : first + 2])
            self.products.append(Product(left, right))
        return func(*args, **(kwargs or {}))


def products_of_a_step(ready: Ready) -> list[Product]:
    """The matrix products of one training step; torch.compile, which hides them, is left out.

    Raises:
        RuntimeError: steps differ in their products, so that there is no such thing.
    """
    with mock.patch.object(train, "compiled", lambda function: function), Recorder() as seen:
        _, steps = ready.run(1)
    one: list[Product] = seen.products[: len(seen.products) // steps]
    if not one or one * steps != seen.products:
        raise RuntimeError(f"{steps} steps made {len(seen.products)} products, not the same ones in each step")
    return one


def replay(products: Sequence[Product]) -> Callable[[], None]:
    """A function that makes these products and nothing else."""
    calls = []
    for product in products:
        left, right = product.left.filled(), product.right.filled()
        out = torch.empty(*product.left.shape[:-1], product.right.shape[-1], dtype=product.left.dtype)
        calls.append((torch.bmm if left.ndim == 3 else torch.mm, left, right, out))

    def make_all() -> None:
        for multiply, left, right, out in calls:
            multiply(left, right, out=out)

    return make_all


def measure(bench: Bench, *, labels: Labels, heads: Sequence[int], rounds: int, timed_steps: int) -> dict[str, Any]:
    """Measures and prints; one row a number of heads."""
    heading(
        f"Products, {labels} labels, n = {rounds} alternating blocks of {timed_steps} steps, medians",
        "heads at once", "products a step", "million operations a step", "ms a step", "ms of products", "ratio",
        "GF/s of the products", "GF/s of the step",
    )  # fmt: skip
    found, ready = [], [make_ready(bench.study(labels, bench.settings, heads=count)) for count in heads]
    for one in ready:
        products = products_of_a_step(one)
        step, bare = alternate(one, replay(products), rounds, timed_steps)
        operations = sum(product.operations for product in products)
        say(
            one.heads, len(products), f"{operations / 1e6:.1f}", f"{1e3 * step:.2f}", f"{1e3 * bare:.2f}",
            f"{step / bare:.2f}", f"{operations / bare / 1e9:.0f}", f"{operations / step / 1e9:.0f}",
        )  # fmt: skip
        shapes = [[*product.left.shape, product.right.shape[-1]] for product in products]
        found.append({
            "heads": one.heads, "operations": operations, "step_seconds": step, "product_seconds": bare,
            "ratio": step / bare, "shapes": shapes,
        })  # fmt: skip
    for row, one in zip(found, ready, strict=True):
        row["operators"] = costliest(one, timed_steps)
    return {"labels": labels, "rounds": rounds, "timed_steps": timed_steps, "rows": found}


def alternate(ready: Ready, make_products: Callable[[], None], rounds: int, steps: int) -> tuple[float, float]:
    """Median seconds of a training step, and of its products alone; the first round warms up."""
    training, bare = [], []
    for repeat in range(rounds + 1):
        step = ready.seconds_a_step(steps)
        begun = time.perf_counter()
        for _ in range(steps):
            make_products()
        spent = (time.perf_counter() - begun) / steps
        if repeat:
            training.append(step)
            bare.append(spent)
    return statistics.median(training), statistics.median(bare)


def costliest(ready: Ready, steps: int) -> list[dict[str, Any]]:
    """The operators that take the most time themselves, and what is spent outside any; printed as they are found."""
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        spent, done = ready.run(steps)
    operators = sorted(seen.key_averages(), key=lambda entry: -entry.self_cpu_time_total)
    inside = sum(entry.self_cpu_time_total for entry in operators) / 1e6
    rows = [
        {"operator": entry.key, "calls": entry.count / done, "seconds": entry.self_cpu_time_total / 1e6 / done}
        for entry in operators[:TOP]
    ]
    rest = inside / done - sum(row["seconds"] for row in rows)
    python = max(0, spent - inside) / done
    rows.append({"operator": f"{max(0, len(operators) - TOP)} others", "calls": None, "seconds": rest})
    rows.append({"operator": "between operators (Python)", "calls": None, "seconds": python})
    heading(
        f"Where a step of {ready.heads} heads goes; the profiler itself slows it to {1e3 * spent / done:.1f} ms",
        "operator", "calls a step", "ms a step", "share",
    )  # fmt: skip
    for row in rows:
        calls = "" if row["calls"] is None else f"{row['calls']:.1f}"
        say(row["operator"], calls, f"{1e3 * row['seconds']:.2f}", f"{100 * row['seconds'] * done / spent:.0f} %")
    return rows
