"""`cspipe head`: methods compared on the tokens of one store, and the run folder that keeps the result."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cspipe.headtrain import runs as run_folders
from cspipe.headtrain.evaluate import paired, summarise
from cspipe.headtrain.heads import save_head
from cspipe.headtrain.rows import Draw, Ints, Labels, StudyRows, labelled_positions, read_rows
from cspipe.headtrain.settings import DEFAULT_METHODS, MAIN_METHOD, HeadSettings
from cspipe.headtrain.study import (
    METHODS,
    OnProgress,
    Outcome,
    Study,
    Trial,
    make_trials,
)
from cspipe.store import open_store
from cspipe.store.errors import unknown_name
from cspipe.store.split import split_hash


def run_head(
    *,
    store: Path,
    runs: Path,
    labels: Labels | None = None,
    seeds: int = 5,
    train_seed: int = 0,
    draw: Draw = "balanced",
    methods: Sequence[str] = DEFAULT_METHODS,
    settings: HeadSettings | None = None,
    dev_rows: int = 0,
    device: str = "cpu",
    config_toml: str = "",
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Trains and compares heads on the tokens of one store.

    Args:
        store: the Zarr group.
        runs: folder for the run's folder.
        labels: labelled rows in all, "all", or None (all where the store has unlabelled rows, else 250).
        seeds: split seeds 0..seeds-1.
        train_seed: seed of weights and batches, the same for every split.
        draw: balanced over classes, or natural.
        methods: names, see `METHODS`.
        settings: of the heads.
        dev_rows: evaluate on the last so many training rows instead of the test split.
        device: torch device.
        config_toml: resolved settings as text, kept in the run folder.
        on_progress: told what is being done.

    Returns:
        The JSON document of contract: results, summary, paired differences, seconds.

    Raises:
        UnknownNameError: a method that does not exist.
        SettingError: labels that cannot be drawn, or no labelled rows.
        StoreError: extraction is not finished.
    """
    start = time.perf_counter()
    for method in methods:
        if method not in METHODS:
            raise unknown_name("method", method, METHODS)
    rows = read_rows(store, dev_rows=dev_rows)
    splits = labelled_positions(rows, labels, seeds, draw)
    study = Study(rows, make_trials(rows, splits), settings or HeadSettings(), train_seed, device, on_progress)
    run = run_folders.new_run(runs, "head", config_toml)
    outcomes = [study.run(method) for method in methods]
    results = [row for outcome in outcomes for row in outcome.results]
    card = head_card(store, rows, train_seed) | {"dev_rows": dev_rows}
    save_heads(run, study, outcomes, splits, card)
    run_folders.write_metrics(run, (record for outcome in outcomes for record in outcome.metrics))
    document: dict[str, Any] = {
        "store": str(store), "backbone": card["backbone"], "dataset": card["dataset"],
        "labels": len(next(iter(splits.values()))), "evaluation": rows.evaluation,
        "rows": {"train": len(rows.label_N), "judged": study.judged_rows, "flagged": rows.flagged},
        "class_names": rows.class_names, "results": results, "summary": summarise(results),
        "paired": paired(results, MAIN_METHOD),
        "confusion": {outcome.method: outcome.confusion.tolist() for outcome in outcomes},
        "split_hash": {str(seed): split_hash(rows.row_id_N[labelled]) for seed, labelled in splits.items()},
        "run": str(run), "seconds": round(time.perf_counter() - start, 2),
    }  # fmt: skip
    report = document | {"provenance": provenance(store), "environment": run_folders.environment()}
    run_folders.write_json(run / "report.json", report | {"command": "head"})
    return document


def save_heads(
    run: Path, study: Study, outcomes: Sequence[Outcome], splits: Mapping[int, Ints], card: Mapping[str, Any]
) -> None:
    """Keeps the heads: one a split; after cross-validation one more head is trained on all of the first draw."""
    (run / "heads").mkdir()
    every = np.arange(len(study.rows.label_N))
    for outcome in (outcome for outcome in outcomes if outcome.heads):
        kept = list(zip(study.trials, outcome.heads, strict=True))
        if study.rows.evaluation == "cross-validation":
            seed, labelled = next(iter(splits.items()))
            whole = [Trial(seed, labelled, every, None)]
            kept = list(zip(whole, study.fit(outcome.method, whole).heads, strict=True))
        by_seed = {row["split_seed"]: row["accuracy"] for row in outcome.results}
        for trial, head in kept:
            ids = study.rows.row_id_N[trial.labelled]
            facts = {
                "method": outcome.method, "split_seed": trial.split_seed, "labels": len(ids),
                "split_hash": split_hash(ids), "accuracy": by_seed[trial.split_seed], **card,
            }  # fmt: skip
            save_head(run / "heads" / f"{outcome.method}-{trial.split_seed}.safetensors", head, ids, facts)


def head_card(store: Path, rows: StudyRows, train_seed: int) -> dict[str, Any]:
    """What a head file says of the store that it belongs to."""
    opened = open_store(store)
    return {
        "store": str(store), "store_key": opened.attributes["key_sha256"], "backbone": opened.backbone,
        "dataset": opened.dataset, "token_width": opened.width, "class_names": rows.class_names,
        "evaluation": rows.evaluation, "train_seed": train_seed,
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
