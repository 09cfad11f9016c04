"""Accuracy row by row: all methods, the way from the paper's objective to ours, its terms, views, class priors."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from head_bench import Bench, heading, points, say, share, span
from numpy.typing import NDArray

from cspipe.headtrain.evaluate import difference, paired, split_means, summarise
from cspipe.headtrain.rows import Labels, StudyRows
from cspipe.headtrain.settings import MAIN_METHOD, HeadSettings, method_settings
from cspipe.headtrain.study import Memory

PAPER = "content-style-paper"

STAGES = (
    ("scale_floor",), ("components",), ("content_term", "entropy_weight", "lambda_c"), ("style_term", "lambda_s"),
    ("lambda_mix", "mix_temperature"), ("norm",),
)  # fmt: skip
"""What the ablation changes together, in order; then the other weights, all else, the power, the class prior and
views."""

TOKEN_WEIGHTS = (0.0005, 0.005, 1.0)
"""Weights of D_y in the predecessor's comparison: two that did no harm, and the one that ruined it."""

SHARES_APART = (1, 3, 20)
"""In a long-tailed set the commonest class is so much commoner than the rarest; the others lie evenly between."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Variant:
    """Settings to compare: a name, and the variant that it is subtracted from, if any."""

    name: str
    settings: HeadSettings
    against: str | None = None


def table(bench: Bench, labels: Sequence[Labels], methods: Sequence[str]) -> list[Row]:
    """All methods with each number of labels, the main one first; heads of all of them train at once."""
    heading(
        f"All methods, {bench.splits} splits x {bench.train_seeds} training seeds", "method", "labels", "accuracy",
        "95 % interval", f"{MAIN_METHOD} minus it, points", "95 % interval, paired",
    )  # fmt: skip
    found: list[Row] = []
    trials = {count: bench.trials(count) for count in labels}
    study = bench.study_of([trial for each in trials.values() for trial in each], bench.settings)
    results: dict[int, list[Row]] = {}
    seconds: dict[str, float] = {}
    for method in sorted(methods, key=lambda name: name != MAIN_METHOD):
        begun = time.perf_counter()
        outcome = study.run(method)
        seconds[method] = time.perf_counter() - begun
        for count, (first, *_) in trials.items():
            own = [row for row in outcome.results if row["labels"] == first.labels]
            results.setdefault(first.labels, []).extend(own)
            row = {
                "labels": count, "method": method, **summarise(own)[method],
                "paired": paired(results[first.labels], MAIN_METHOD).get(method), "results": own,
                "seconds_of_all_labels": seconds[method],
            }  # fmt: skip
            say(method, count, share(row["mean"]), span(row["ci95"]), *points(row["paired"]))
            found.append(row)
    told = ", ".join(f"{method} {spent:.1f}" for method, spent in seconds.items())
    print(f"\n{sum(seconds.values()):.0f} s in all: {told}", flush=True)
    return found


def compare(
    bench: Bench, labels: Sequence[Labels], title: str, variants: Sequence[Variant], only: Sequence[int] | None = None
) -> list[Row]:
    """Content-style heads with each of the settings, or with the `only` ones, numbers in their order."""
    if only is not None:
        kept = [variants[number] for number in only if number < len(variants)]
        names = {variant.name for variant in kept}
        variants = [v if v.against in names else replace(v, against=None) for v in kept]
    heading(
        f"{title}, {bench.splits} splits x {bench.train_seeds} training seeds", "labels", "settings", "accuracy",
        "95 % interval", "difference, points", "95 % interval, paired", "from", "seconds a head",
    )  # fmt: skip
    found: list[Row] = []
    for count in labels:
        seen: dict[str, dict[int, float]] = {}
        for number, variant in enumerate(variants):
            study = bench.study(count, variant.settings)
            begun = time.perf_counter()
            outcome = study.run(MAIN_METHOD)
            spent = (time.perf_counter() - begun) / len(outcome.heads)
            seen[variant.name] = split_means(outcome.results)[MAIN_METHOD]
            versus = None if variant.against is None else difference(seen[variant.name], seen[variant.against])
            row = {
                "labels": count, "name": variant.name, **summarise(outcome.results)[MAIN_METHOD],
                "against": variant.against, "difference": versus, "seconds_a_head": spent,
                "settings": asdict(study.settings), "results": outcome.results,
            }  # fmt: skip
            say(
                count, variant.name, share(row["mean"]), span(row["ci95"]), *points(versus),
                origin(variants, number), f"{spent:.2f}",
            )  # fmt: skip
            found.append(row)
    return found


def origin(variants: Sequence[Variant], number: int) -> str:
    """Which row a row is compared with, in the table's words."""
    against = variants[number].against or ""
    return "the row above" if number > 1 and against == variants[number - 1].name else against


def ablation(bench: Bench) -> list[Variant]:
    """From the paper's objective to ours, one change at a time; each row is compared with the one before."""
    now = replace(method_settings(PAPER, bench.settings), prior="uniform")
    end = method_settings(MAIN_METHOD, bench.settings)
    variants, before = [Variant(PAPER, now)], PAPER
    for names in stages(bench):
        changes = {name: getattr(end, name) for name in names if getattr(now, name) != getattr(end, name)}
        if changes:
            told = ", ".join(f"`{name}` {getattr(now, name)} to {value}" for name, value in changes.items())
            now = replace(now, **changes)
            variants.append(Variant(told, now, before))
            before = told
    return variants


def stages(bench: Bench) -> list[tuple[str, ...]]:
    """Every setting once, in groups; views only where the store has some."""
    grouped = {name for names in STAGES for name in names} | {"power", "prior", "views"}
    rest = [field.name for field in fields(HeadSettings) if field.name not in grouped]
    weights = tuple(name for name in rest if name.startswith("lambda_"))
    others = tuple(name for name in rest if name not in weights)
    last = [("power",), ("prior",), *([("views",)] if bench.rows.view_VND else [])]
    return [*STAGES, weights, others, *last]


def terms(bench: Bench) -> list[Variant]:
    """The paper's objective with terms left out, with D_y at several weights, and under the other estimator."""
    whole = replace(method_settings(PAPER, bench.settings), lambda_y=0.0)
    weights = {"D_c": "lambda_c", "D_s": "lambda_s", "L_y": "lambda_yy"}
    names = ((), ("D_c",), ("D_s",), ("L_y",), ("D_c", "D_s"), ("D_c", "L_y"), ("D_s", "L_y"), ("D_c", "D_s", "L_y"))
    variants, first = [], None
    for kept in names:
        off: dict[str, Any] = {weights[term]: 0.0 for term in weights if term not in kept}
        variants.append(Variant(" + ".join(("L_c", *kept)), replace(whole, **off), first))
        first = first or variants[0].name
    last = variants[-1].name
    variants += [Variant(f"{last} + {weight:g} D_y", replace(whole, lambda_y=weight), last) for weight in TOKEN_WEIGHTS]
    variants.append(Variant(f"{last}, estimator kl", replace(whole, estimator="kl"), last))
    return [*variants, Variant(f"{last}, discriminators of 500 units", replace(whole, discriminator=500), last)]


def views(bench: Bench, counts: Sequence[int]) -> list[Variant]:
    """As many cached views of a row as named, where the store holds them."""
    held = len(bench.rows.view_VND)
    kept = [count for count in counts if count <= held]
    if len(kept) < len(counts):
        print(f"\nthe store holds {held} views: no rows for more", flush=True)
    names = [f"{count} view{'' if count == 1 else 's'}" for count in kept]
    return [
        Variant(name, replace(bench.settings, views=count), names[0] if number else None)
        for number, (name, count) in enumerate(zip(names, kept, strict=True))
    ]


def imbalance(bench: Bench, apart: float, seed: int = 0) -> tuple[Bench, list[Variant]]:
    """Rows thinned to a long tail, and the main method under each class prior beside L_c alone."""
    share_K = apart ** -np.linspace(0, 1, bench.rows.classes)
    share_K /= share_K.sum()
    rows = thinned(bench.rows, share_K, np.random.default_rng(seed))
    settings = replace(bench.settings, prior="uniform", prior_given=(), cluster_terms="always")
    given = replace(settings, prior="given", prior_given=tuple(share_K.tolist()))
    variants = [
        Variant("supervised", method_settings("supervised", settings)),
        Variant("uniform prior", settings, "supervised"),
        Variant("estimated prior", replace(settings, prior="estimated"), "supervised"),
        Variant("the true shares given", given, "supervised"),
    ]
    return replace(bench, rows=rows, memory=Memory()), variants


def thinned(rows: StudyRows, share_K: NDArray[np.float64], generator: np.random.Generator) -> StudyRows:
    """As many training and judged rows as there can be in these class shares."""
    assert rows.eval_label_M is not None and rows.eval_token_MD is not None
    kept_N, kept_M = (draw_shares(label, share_K, generator) for label in (rows.label_N, rows.eval_label_M))
    at_N, at_M = torch.from_numpy(kept_N), torch.from_numpy(kept_M)
    return replace(
        rows, token_ND=rows.token_ND[at_N], label_N=rows.label_N[kept_N], row_id_N=rows.row_id_N[kept_N],
        view_VND=tuple(view_ND[at_N] for view_ND in rows.view_VND), eval_token_MD=rows.eval_token_MD[at_M],
        eval_label_M=rows.eval_label_M[kept_M],
    )  # fmt: skip


def draw_shares(
    label_N: NDArray[np.int64], share_K: NDArray[np.float64], generator: np.random.Generator
) -> NDArray[np.int64]:
    """Sorted positions of rows whose classes have these shares; rows without a label are left out."""
    count_K: Mapping[int, int] = {k: int((label_N == k).sum()) for k in range(len(share_K))}
    whole = min(count_K[k] / float(value) for k, value in enumerate(share_K))
    kept = [
        generator.permutation(np.flatnonzero(label_N == k))[: round(whole * float(value))]
        for k, value in enumerate(share_K)
    ]
    return np.sort(np.concatenate(kept))
