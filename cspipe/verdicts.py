"""What a run says in one plain sentence, and how numbers are written on the page. Fractions in, text out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cspipe.headtrain.settings import MAIN_METHOD

Report = Mapping[str, Any]
METHOD_WORDS = {
    "content-style-paper": "the paper's bare objective", "supervised": "the supervised head",
    "logistic": "logistic regression", "knn": "nearest neighbours", "label-propagation": "label propagation",
    "self-training": "self-training",
}  # fmt: skip
OWN_VARIANTS = frozenset({"content-style-paper"})
NO_INTERVAL = "There is one split, hence no interval."
ONE_SPLIT = "The interval covers the judged images; there is one draw of the labelled ones."


@dataclass(frozen=True)
class Verdict:
    """What a run says, and what else must be known to judge it (may be empty)."""

    sentence: str
    note: str


def percent(value: float) -> str:
    """`0.894` -> `89.4 %`."""
    return f"{100 * value:.1f}\u00a0%"


def points(value: float) -> str:
    """`-0.091` -> `9.1`: the size of a difference in percentage points."""
    return f"{abs(100 * value):.1f}"


def signed(value: float) -> str:
    """`-0.091` -> a true minus sign and `9.1`."""
    size = points(value)
    return size if size == "0.0" else ("+" if value > 0 else "\u2212") + size


def bounds(ci95: Sequence[float] | None) -> str:
    """An interval of accuracies, or a dash."""
    return "\u2013" if ci95 is None else f"[{100 * ci95[0]:.1f},\u00a0{100 * ci95[1]:.1f}]"


def between(ci95: Sequence[float]) -> str:
    """An interval of differences."""
    return f"{signed(ci95[0])}\u00a0to\u00a0{signed(ci95[1])}"


def method_words(name: str) -> str:
    """A method's name in a sentence."""
    return METHOD_WORDS.get(name, name)


def judged_on(told: Report) -> str:
    """Which rows accuracy was measured on."""
    rows = told["rows"]["judged"]
    if told.get("test_dataset"):
        return f"on {rows:,} images of {told['test_dataset']}"
    return {
        "test": f"on {rows:,} test images",
        "dev": f"on {rows:,} training images held out for development",
        "cross-validation": f"in cross-validation over {rows:,} labelled images",
    }.get(told["evaluation"], f"on {rows:,} images")


def head_verdict(told: Report) -> Verdict:
    """Whether content-style beats the best of the other methods of a head run, as plainly when it does not."""
    summary = told["summary"]
    given, alone = f"With {told['labels']:,} labels", "" if told_interval(summary) else NO_INTERVAL
    others = {name: value["mean"] for name, value in summary.items() if name != MAIN_METHOD}
    if MAIN_METHOD not in summary:
        best = max(others, key=others.__getitem__)
        return Verdict(
            f"{given}, {method_words(best)} reaches {reach(summary[best])} {judged_on(told)}, the most of the methods "
            f"that were run; {MAIN_METHOD} was not among them.", alone,
        )  # fmt: skip
    reached = f"{given}, {MAIN_METHOD} reaches {reach(summary[MAIN_METHOD])} {judged_on(told)}"
    if not others:
        return Verdict(f"{reached}. No other method was run beside it, so this says nothing of its worth.", alone)
    return Verdict(reached + comparison(told, max(others, key=others.__getitem__)), alone)


def told_interval(summary: Mapping[str, Any]) -> bool:
    """True where there are intervals: with more than one split."""
    return any(value["ci95"] for value in summary.values())


def reach(value: Mapping[str, Any]) -> str:
    """A mean accuracy with its interval where there is one."""
    return percent(value["mean"]) + (f" {bounds(value['ci95'])}" if value["ci95"] else "")


def comparison(told: Report, best: str) -> str:
    """The end of the sentence: how far above or below the best other method."""
    versus = told["paired"][best]
    difference, ci95 = versus["mean_difference"], versus["ci95"]
    rival = ("the best of the others, " if best in OWN_VARIANTS else "the best baseline, ") + method_words(best)
    interval = f"paired 95\u00a0% interval {between(ci95)}" if ci95 else ""
    brackets = f" ({interval})" if ci95 else ""
    if difference > 0 and (ci95 is None or ci95[0] > 0):
        return f": {points(difference)} points above {rival}{brackets}."
    theirs = percent(told["summary"][best]["mean"])
    if difference > 0:
        return (
            f": {points(difference)} points above {rival}, but the {interval.replace('interval ', 'interval, ')}, "
            "includes zero, so these splits do not show that it is better."
        )
    below = f"it is {points(difference)} points below" if points(difference) != "0.0" else "the two are level"
    return f". It does not beat {rival}, which reaches {theirs}: {below}{brackets}."


def sweep_verdict(told: Report) -> Verdict:
    """In how many frozen cells of a sweep content-style is above the best of the other methods."""
    cells: dict[tuple[object, ...], list[Mapping[str, Any]]] = {}
    for row in told["table"]:
        if row["regime"] == "frozen":
            place = tuple(row[key] for key in ("backbone", "dataset", "labels", "setting"))
            cells.setdefault(place, []).append(row)
    rivals = [max(others, key=lambda row: float(row["mean"])) for rows in cells.values()
              if (others := [row for row in rows if row["difference"] is not None])]  # fmt: skip
    failed = f"{counted(len(told['failed']), 'cell')} of the grid failed." if told["failed"] else ""
    if not rivals:
        return Verdict(f"{counted(len(cells), 'frozen cell')}; in none was {MAIN_METHOD} run beside others.", failed)
    above = [row for row in rivals if row["difference"] > 0]
    sure = sum(bool(row["difference_ci95"]) and row["difference_ci95"][0] > 0 for row in above)
    return Verdict(
        f"In {len(above)} of {counted(len(rivals), 'frozen cell')} {MAIN_METHOD} is above the best of the other "
        f"methods that were run, in {sure or 'none'} of them with a paired 95\u00a0% interval above zero.", failed,
    )  # fmt: skip


def counted(number: int, what: str) -> str:
    """`1 cell`, `2 cells`."""
    return f"{number:,} {what}" + ("" if number == 1 else "s")


def restart_words(restarts: Mapping[str, tuple[int, int, int]]) -> list[str]:
    """Sentences on heads whose training was lost: those of each method; empty where none was."""
    return [
        f"{lost} of {counted(heads, 'head')} of {method} became not finite while training and went back to the last "
        f"good state, {times} {'time' if times == 1 else 'times'} in all."
        for method, (lost, times, heads) in restarts.items() if lost
    ]  # fmt: skip


def finetune_verdict(told: Report) -> Verdict:
    """Whether training the backbone was worth it, as plainly when the frozen head is better: gain, cost, drift."""
    before, after = told["accuracy_before"], told["accuracy_after"]
    rows = sum(map(sum, told["confusion"]["after"]))
    start = f"Training the backbone of the {told['labels']:,}-label head (split {told['split_seed']})"
    where = f"on the {rows:,} images that it was judged on"
    if points(after - before) == "0.0":
        change = f"{start} leaves accuracy at {percent(after)} {where}"
    else:
        verb, worth = ("raises", "better") if after > before else ("lowers", "worse")
        change = (
            f"{start} {verb} accuracy from {percent(before)} to {percent(after)} {where}: "
            f"{points(after - before)} points {worth} than leaving it frozen"
        )
    note = f"{NO_INTERVAL}{cost(told)}{drift(told['cka'])}"
    if told.get("gain_ci95"):
        return Verdict(f"{change}{worth_of(told['gain_ci95'])}", note.replace(NO_INTERVAL, ONE_SPLIT))
    chance = 2 * float((before * (1 - before) + after * (1 - after)) / max(rows, 1)) ** 0.5
    doubt = (
        f", though on {rows:,} images up to {points(chance)} points may be chance"
        if abs(after - before) < chance
        else ""
    )
    return Verdict(f"{change}{doubt}.", note)


def worth_of(ci95: Sequence[float]) -> str:
    """The end of the sentence: the interval of the gain, and what to do where it does not lie above zero."""
    interval = f" (95\u00a0% interval {between(ci95)}, paired by image)"
    if ci95[0] > 0:
        return f"{interval}."
    if ci95[1] < 0:
        return f"{interval}. The frozen head is better: keep it."
    return f"{interval}. These images do not tell the two apart: the frozen head is as good and costs nothing more."


def cost(told: Report) -> str:
    """What training took."""
    hours = told.get("training_hours")
    if hours is None:
        return ""
    took = f"{hours:.1f} hours" if hours >= 1 else f"{max(60 * hours, 0.1):.1f} minutes"
    return f" Training took {took}; the frozen head had none of it."


def drift(cka: float | None) -> str:
    """How far the tokens moved."""
    if cka is None:
        return ""
    return f" The tokens moved to a CKA of {cka:.2f} with the frozen ones (1 where nothing moved)."
