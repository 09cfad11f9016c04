"""`cspipe head`: methods compared on the tokens of one store, and the run folder that keeps the result."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cspipe.headtrain import runs as run_folders
from cspipe.headtrain.chunked import ChunkedTokens, available_bytes, check_streamed, resident_bytes
from cspipe.headtrain.clusters import PLAIN_AGREEMENT, Findings
from cspipe.headtrain.diagnostics import diagnose
from cspipe.headtrain.evaluate import paired, summarise
from cspipe.headtrain.headfile import save_head
from cspipe.headtrain.labelfile import read_labels
from cspipe.headtrain.rows import Draw, Ints, Labels, StudyRows, labelled_positions, read_rows
from cspipe.headtrain.settings import DEFAULT_METHODS, MAIN_METHOD, HeadSettings, method_settings
from cspipe.headtrain.shift import judge_elsewhere
from cspipe.headtrain.study import METHODS, Memory, OnProgress, Outcome, Study, Trial, make_trials
from cspipe.store import open_store
from cspipe.store.errors import SettingError, unknown_name
from cspipe.store.leaks import count_duplicates
from cspipe.store.remotes import shown
from cspipe.store.split import split_hash


def run_head(
    *,
    store: Path,
    runs: Path,
    labels: Labels | None = None,
    seeds: int = 5,
    train_seed: int = 0,
    train_seeds: int = 1,
    draw: Draw = "balanced",
    methods: Sequence[str] = DEFAULT_METHODS,
    settings: HeadSettings | None = None,
    dev_rows: int = 0,
    test_store: Path | None = None,
    device: str = "cpu",
    config_toml: str = "",
    on_progress: OnProgress | None = None,
    memory: Memory | None = None,
    memory_gb: float | None = None,
    labels_from: Sequence[Path] = (),
) -> dict[str, Any]:
    """Trains and compares heads on the tokens of one store.

    Args:
        store: the Zarr group.
        runs: folder for the run's folder.
        labels: labelled rows in all, "all", or None (all where the store has unlabelled rows, else 250).
        seeds: split seeds 0..seeds-1.
        train_seed: seed of weights and batches, the same for every split.
        train_seeds: train so many heads a split, seeds `train_seed` and those after it; the first one's are kept.
        draw: balanced over classes, or natural.
        methods: names, see `METHODS`.
        settings: of the heads.
        dev_rows: evaluate on the last so many training rows instead of the test split.
        test_store: evaluate on the labelled rows of another data set's store instead, see `judge_elsewhere`.
        device: torch device.
        config_toml: resolved settings as text, kept in the run folder.
        on_progress: told what is being done.
        memory: what runs on the same rows (same store, dev rows and test store) need not compute again.
        memory_gb: how much memory the training rows may take, 10^9 bytes; three quarters of what is free where it is
            None. Rows that take more stay in their store and are read while heads train, see `streaming`.
        labels_from: CSV files of further labels, see `labelfile`; their rows are added to every draw.

    Returns:
        The JSON document of contract: results, summary, paired differences, diagnostics, seconds.

    Raises:
        UnknownNameError: a method that does not exist.
        SettingError: labels that cannot be drawn, no labelled rows, or dev rows together with a test store.
        MismatchError: the test store does not fit.
        StoreError: extraction is not finished.
    """
    start, settings = time.perf_counter(), settings or HeadSettings()
    for method in methods:
        if method not in METHODS:
            raise unknown_name("method", method, METHODS)
    stream_bytes = bytes_to_stream_in(store, methods, settings, memory_gb)
    given = read_labels(labels_from, open_store(store)) if labels_from else {}
    rows = rows_of_study(store, dev_rows, test_store, settings.views, stream_bytes, given)
    check_streamed(rows.token_ND, methods, settings, rows.evaluation)
    splits = labelled_positions(rows, labels, seeds, draw)
    trials = make_trials(rows, splits, range(train_seed, train_seed + train_seeds))
    study = Study(rows, trials, settings, device, on_progress, memory or Memory())
    run = run_folders.new_run(runs, "head", config_toml)
    outcomes, diagnostics = compare(study, methods)
    card = head_card(store, test_store, rows, train_seed) | {"dev_rows": dev_rows, "given_labels": given}
    save_heads(run, study, outcomes, splits, card)
    run_folders.write_metrics(run, (record for outcome in outcomes for record in outcome.metrics))
    document = {
        **{name: card[name] for name in ("store", "backbone", "dataset", "test_dataset", "test_store")},
        "labels": len(next(iter(splits.values()))), "given_labels": len(given), **findings(study, outcomes),
        "diagnostics": diagnostics, "clusters": clusters_found(study, methods),
        "class_shares": class_shares(study, outcomes),
        "split_hash": {str(seed): split_hash(rows.row_id_N[labelled]) for seed, labelled in splits.items()},
        "run": str(run), "seconds": round(time.perf_counter() - start, 2),
    }  # fmt: skip
    facts = {"command": "head", "provenance": provenance(store), "environment": run_folders.environment()}
    facts["duplicates"] = count_duplicates(open_store(store))
    if test_store:
        facts["test_provenance"] = provenance(test_store)
    run_folders.write_json(run / "report.json", document | facts)
    return document


def compare(study: Study, methods: Sequence[str]) -> tuple[list[Outcome], dict[str, dict[str, Any]]]:
    """Runs the methods one after the other: what each gave, and its diagnostics by name."""
    outcomes, diagnostics = [], {}
    for method in methods:
        begun = time.perf_counter()
        outcomes.append(study.run(method))
        diagnostics[method] = diagnose(study, outcomes[-1], time.perf_counter() - begun)
    return outcomes, diagnostics


def findings(study: Study, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The part of the document that tells accuracy."""
    rows, results = study.rows, [row for outcome in outcomes for row in outcome.results]
    return {
        "evaluation": rows.evaluation,
        "rows": {
            "train": len(rows.label_N), "views": len(rows.view_VND), "judged": study.judged_rows,
            "flagged": rows.flagged,
        } | streamed(rows),
        "class_names": rows.class_names, "results": results, "summary": summarise(results),
        "paired": paired(results, MAIN_METHOD),
        "confusion": {outcome.method: outcome.confusion.tolist() for outcome in outcomes},
        "restarts": {outcome.method: count_restarts(outcome) for outcome in outcomes if outcome.metrics},
    }  # fmt: skip


def clusters_found(study: Study, methods: Sequence[str]) -> dict[str, Any] | None:
    """How far classes lie together by each split's labelled rows, and the splits where it was not relied on.

    `held_out` are the rows that heads which were tried got right, both with and without relying on it, the former
    alone and the latter alone, null where the agreement alone was believed; `anchors` the splits where tokens were
    standardised with their neighbourhood, `batch_norm` those whose heads have a batch norm. None where nothing relies
    on it. In cross-validation the lowest of a split's folds counts.
    """
    settings = method_settings(MAIN_METHOD, study.settings)
    if MAIN_METHOD not in methods or not settings.asks_for_clusters:
        return None
    by_seed: dict[str, list[Findings]] = {}
    for trial, found_of_trial in zip(study.trials, study.found(settings, study.trials), strict=True):
        by_seed.setdefault(str(trial.split_seed), []).append(found_of_trial)
    agreement = {
        seed: min((each.agreement for each in found if each.agreement is not None), default=None)
        for seed, found in by_seed.items()
    }
    return {
        "agreement": agreement, "plain": PLAIN_AGREEMENT,
        "held_out": {seed: [each.held_out for each in found] for seed, found in by_seed.items()},
        "left_out": [seed for seed, found in by_seed.items() if not all(each.bears_out for each in found)],
        "anchors": [seed for seed, found in by_seed.items() if any(each.anchors for each in found)],
        "batch_norm": [seed for seed, found in by_seed.items()
                       if any(each.batch_norm and not each.bears_out for each in found)],
    }  # fmt: skip


def class_shares(study: Study, outcomes: Sequence[Outcome]) -> dict[str, Any] | None:
    """How frequent classes are among the labelled rows, and what D_c held the main method's heads to, by split.

    Means over a split's heads; None where no head has such a term.
    """
    labelled: list[NDArray[np.float64]] = []
    held: dict[str, list[NDArray[np.float64]]] = {}
    heads = [head for outcome in outcomes if outcome.method == MAIN_METHOD for head in outcome.heads]
    for trial, head in zip(study.trials, heads, strict=False):
        if head.settings.lambda_c and head.prior_K is not None:
            count_K = np.bincount(study.rows.label_N[trial.labelled], minlength=study.rows.classes)
            labelled.append(count_K / count_K.sum())
            held.setdefault(str(trial.split_seed), []).append(head.prior_K.double().cpu().numpy())
    if not held:
        return None
    return {
        "labelled": np.mean(labelled, 0).tolist(),
        "held_to": {seed: np.mean(shares, 0).tolist() for seed, shares in held.items()},
    }


def count_restarts(outcome: Outcome) -> int:
    """How often a head of the method was lost and put back to its last good state, all heads together."""
    last: dict[tuple[int, ...], int] = {}
    for record in outcome.metrics:
        last[tuple(record[name] for name in ("split_seed", "train_seed", "fold"))] = int(record["restarts"])
    return sum(last.values())


def streamed(rows: StudyRows) -> dict[str, float]:
    """The memory limit of training rows that stay in their store, 10^9 bytes."""
    return {"streamed_in_gb": rows.token_ND.limit_bytes / 1e9} if isinstance(rows.token_ND, ChunkedTokens) else {}


def bytes_to_stream_in(
    store: Path, methods: Sequence[str], settings: HeadSettings, memory_gb: float | None
) -> int | None:
    """The memory limit where the training rows would take more than it, else None: they are loaded."""
    opened = open_store(store)
    limit = available_bytes() if memory_gb is None else int(memory_gb * 1e9)
    if limit is None or "train" not in opened.splits:
        return None
    views = len(opened.views("train")[: settings.views])
    return limit if resident_bytes(opened["train"], views, methods, settings) > limit else None


def rows_of_study(
    store: Path, dev_rows: int, test_store: Path | None, views: int, stream_bytes: int | None = None,
    given: Mapping[int, int] | None = None,
) -> StudyRows:  # fmt: skip
    """The store's rows with their views, judged on dev rows, on another store, or on its own test split."""
    if test_store is None:
        return read_rows(store, dev_rows=dev_rows, views=views, stream_bytes=stream_bytes, given=given)
    if dev_rows:
        raise SettingError(
            "head.dev_rows judges on training rows and --test-dataset on another data set: set dev_rows = 0, or leave "
            "out --test-dataset."
        )
    rows = read_rows(store, views=views, stream_bytes=stream_bytes, given=given)
    return judge_elsewhere(rows, store, test_store)


def save_heads(
    run: Path, study: Study, outcomes: Sequence[Outcome], splits: Mapping[int, Ints], card: Mapping[str, Any]
) -> None:
    """Keeps the heads of the first training seed: one a split; after cross-validation one on all of the first draw."""
    (run / "heads").mkdir()
    every, first = np.arange(len(study.rows.label_N)), study.trials[0].train_seed
    for outcome in (outcome for outcome in outcomes if outcome.heads):
        kept = list(zip(study.trials, outcome.heads, strict=True))
        if study.rows.evaluation == "cross-validation":
            seed, labelled = next(iter(splits.items()))
            whole = [Trial(seed, labelled, every, None, first)]
            kept = list(zip(whole, study.fit(outcome.method, whole)[0], strict=True))
        by_seed = {row["split_seed"]: row["accuracy"] for row in outcome.results if row["train_seed"] == first}
        for trial, head in kept:
            if trial.train_seed != first:
                continue
            ids = study.rows.row_id_N[trial.labelled]
            facts = {
                "method": outcome.method, "split_seed": trial.split_seed, "labels": len(ids),
                "split_hash": split_hash(ids), "accuracy": by_seed[trial.split_seed], **card,
            }  # fmt: skip
            save_head(run / "heads" / f"{outcome.method}-{trial.split_seed}.safetensors", head, ids, facts)


def head_card(store: Path, test_store: Path | None, rows: StudyRows, train_seed: int) -> dict[str, Any]:
    """What a head file says of the store that it belongs to, and of the other one that it was judged on."""
    opened = open_store(store)
    return {
        "store": shown(store), "store_key": opened.attributes["key_sha256"], "backbone": opened.backbone,
        "dataset": opened.dataset, "token_width": opened.width, "class_names": rows.class_names,
        "evaluation": rows.evaluation, "train_seed": train_seed,
        "test_dataset": open_store(test_store).dataset if test_store else None,
        "test_store": shown(test_store) if test_store else None,
    }  # fmt: skip


def provenance(store: Path) -> dict[str, Any]:
    """Where the tokens came from, for the report."""
    opened = open_store(store)
    fingerprints = {name: opened[name].attributes.get("dataset_fingerprint") for name in opened.splits}
    return {
        **opened.provenance,
        "store_key": opened.attributes["key_sha256"],
        "dataset_fingerprint": fingerprints,
    }
