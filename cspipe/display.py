"""How each command's JSON document is shown to a person: tables on standard output."""

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from cspipe.common import Common
from cspipe.terminal import cell, message, plain, print_json, print_table, share, span

Document = dict[str, Any]
CLASSES_TOLD = 10
"""At most so many classes are named behind a table."""
SHARES_SHOWN, SHARES_MOVED = 5, 0.05
"""So many class shares are named, where at least this part of all images is of another class than the labels say."""


def show(document: Document, common: Common, pretty: Callable[[Document], None]) -> None:
    """Prints a document as JSON or for a person."""
    if common.json:
        print_json(document)
    else:
        pretty(document)


def print_extract(document: Document) -> None:
    """Rows of each split of each store, bad images, speed and where the time went."""
    for told in document.get("stores", [document]):
        print_extracted(told)
    speed, seconds = document["images_per_second"], document["seconds_by_stage"]
    if not speed:
        print("nothing to compute")
        return
    whole = sum(seconds.values())
    spent = ", ".join(f"{name} {100 * value / whole:.0f} %" for name, value in seconds.items())
    print(f"{speed:,.0f} images/s; of the workers' time {spent}")


def print_extracted(document: Document) -> None:
    """One store."""
    rows = [(name, *(part[key] for key in ("rows", "computed", "reused", "flagged", "removed")))
            for name, part in document["splits"].items()]  # fmt: skip
    title = (
        f"{document['backbone']} on {document['dataset']} ({document['token']}, {document['width']} wide, "
        f"licence {document['licence']})"
    )
    print_table(title, ("split", "rows", "computed", "reused", "flagged", "removed"), rows)
    print(plain(labels_told(document)))
    if document["bad_images"]:
        bad = [(entry["split"], entry["row"], entry["path"], entry["reason"]) for entry in document["bad_images"]]
        print_table("images that could not be read", ("split", "row", "path", "reason"), bad)
    for pair, count in document["duplicates"].items():
        if count:
            message(f"{count} images are in both of {pair}: cspipe store duplicates lists them")
    print(document["store"])


def labels_told(document: Document) -> str:
    """How many images of each split have a label, and the first classes."""
    counts = [f"{told:,} of {document['splits'][name]['rows']:,} {name} images"
              for name, told in document["labelled"].items()]  # fmt: skip
    names = document["class_names"]
    more = f" and {len(names) - CLASSES_TOLD} more" if len(names) > CLASSES_TOLD else ""
    return f"with a label: {', '.join(counts)}; classes: {', '.join(names[:CLASSES_TOLD])}{more}"


def print_rehearsal(document: Document) -> None:
    """What an extraction would do."""
    for told in document["stores"]:
        title = f"{Path(told['store']).name} ({told['token']}, {told['width']} wide, licence {told['licence']})"
        print_table(title, ("split", "rows to compute"), list(told["rows_to_compute"].items()))
        print(f"{told['bytes'] / 2**20:,.1f} MiB on disk, batches of {told['batch_size']}")
    if document["images_per_second"]:
        left = timedelta(seconds=round(document["seconds_left"]))
        print(f"{document['images_per_second']:,.0f} images/s on a few batches: {left} to go")
    else:
        print("nothing to compute")
    print(f"nothing was written; {document['bytes_free'] / 2**30:,.1f} GiB free where the stores lie")


def print_head(document: Document) -> None:
    """Accuracy of each method with its interval and the paired difference."""
    rows = []
    for name, told in document["summary"].items():
        versus = document["paired"].get(name)
        rows.append((
            name, share(told["mean"]), span(told["ci95"]),
            f"{100 * versus['mean_difference']:+.1f}" if versus else "-",
            span(versus["ci95"], signed=True) if versus else "-",
        ))  # fmt: skip
    splits = len({row["split_seed"] for row in document["results"]})
    judged = document["rows"]["judged"]
    where = document["test_dataset"] or document["evaluation"]
    title = (
        f"{document['backbone']} on {document['dataset']}, {document['labels']} labels, "
        f"{splits} split{'s' if splits > 1 else ''}, accuracy on {judged} rows ({where})"
    )
    print_table(title, ("method", "accuracy", "95 % interval", "content-style minus it", "95 % interval"), rows)
    if splits == 1:
        print("no intervals: all labels are used, or one split was asked for; --labels N with --seeds draws several")
    told = document.get("clusters")
    if told and told["anchors"]:
        print(
            "Something else outshines the classes here: tokens standardised with their neighbourhood were used on "
            f"{len(told['anchors'])} of {len(told['agreement'])} splits."
        )
    if told and told["left_out"]:
        print(
            "Rows that lie together are often of other classes, as held-out labelled rows told: on "
            f"{len(told['left_out'])} of {len(told['agreement'])} splits content-style followed the votes of "
            "supervised heads."
        )
    print_class_shares(document)
    print(f"{document['run']}  {document['seconds']} s")


def print_class_shares(document: Document) -> None:
    """How frequent classes are among the images, where that is not as among the labelled ones."""
    told = document.get("class_shares")
    if not told:
        return
    splits = list(told["held_to"].values())
    held = [sum(column) / len(splits) for column in zip(*splits, strict=True)]
    moved = [after - before for after, before in zip(held, told["labelled"], strict=True)]
    if sum(map(abs, moved)) / 2 < SHARES_MOVED:
        return
    named = sorted(zip(document["class_names"], held, strict=True), key=lambda pair: -pair[1])
    shown = ", ".join(f"{name} {100 * share:.0f} %" for name, share in named[:SHARES_SHOWN])
    rest = len(named) - SHARES_SHOWN
    print(
        f"Among all images classes are not as frequent as among the labelled ones, content-style found: {shown}"
        f"{f' and {rest} more' if rest > 0 else ''}. If that is wrong, --set prior=labelled."
    )


def print_finetune(document: Document) -> None:
    """Accuracy before and after, drift, where the model is."""
    before, after = document["accuracy_before"], document["accuracy_after"]
    title = (
        f"{document['backbone']} on {document['dataset']}, backbone trained, {document['labels']} labels, "
        f"accuracy on {document['judged_rows']} rows"
    )
    row = (share(before), share(after), f"{100 * (after - before):+.1f}", span(document["gain_ci95"], signed=True),
           *(f"{document[name]:.3f}" for name in ("cka", "knn_overlap", "cosine")))  # fmt: skip
    columns = ("before", "after", "difference", "95 % interval", "CKA with the cached tokens", "neighbours", "cosine")
    print_table(title, columns, [row])
    if kept := document.get("kept"):
        print(f"neighbours on {kept['images']:,} images of {kept['dataset']}: {share(kept['frozen'])} frozen, "
              f"{share(kept['tuned'])} tuned")  # fmt: skip
    if after < before:
        print("The frozen head was better: keep it, or lower finetune.lr.")
    elif document["gain_ci95"][0] <= 0:
        print("The judged images do not tell the two apart: the frozen head is as good.")
    print(f"{document['model_dir']}  {document['seconds']} s")


def print_run(document: Document) -> None:
    """Every stage's own table, then the page."""
    for stage, pretty in (("extract", print_extract), ("head", print_head), ("finetune", print_finetune)):
        if stage in document:
            pretty(document[stage])
    if "page" in document:
        print_report(document)


def print_report(document: Document) -> None:
    """Path of the page."""
    print(f"report: {document['page']}")


def print_explore(document: Document) -> None:
    """Path and size of the page, and what it leaves out."""
    if document["rows"] < document["rows_in_store"]:
        message(f"{document['rows']:,} of {document['rows_in_store']:,} rows are shown: --limit shows more")
    if document["problem"]:
        message(f"no thumbnails: {document['problem']}")
    print(f"explorer: {document['page']}  {document['rows']:,} rows, {document['bytes'] / 1e6:.1f} MB")


def print_listing(document: Document) -> None:
    """A table for each kind of thing."""
    from cspipe.data import print_datasets
    from cspipe.networks import print_backbones

    print_backbones(document["backbones"])
    print_datasets(document["datasets"])
    print_records("runs", document["runs"])
    print_stores(document)


def print_records(title: str, records: Sequence[Mapping[str, Any]]) -> None:
    """Records of the same keys as a table."""
    if records:
        print_table(title, list(records[0]), [list(record.values()) for record in records])


def print_stores(document: Document) -> None:
    """One line a store."""
    rows = [
        (told["store"], cell(told["width"]), ", ".join(f"{name} {n}" for name, n in told["rows"].items()),
         ", ".join(f"{name} {n}" for name, n in told["views"].items() if n),
         "complete" if told["complete"] else "unfinished or damaged")
        for told in document["stores"]
    ]  # fmt: skip
    print_table("stores", ("store", "width", "rows", "views", "state"), rows)


def print_store_info(document: Document) -> None:
    """Attributes, one a line; of a joined store a line for each backbone."""
    from cspipe.store.join import JOINED

    provenance = dict(document.get("provenance", {}))
    parts = provenance.pop(JOINED, [])
    facts = {key: document[key] for key in ("store", "width", "dtype", "chunk_rows", "batch_size")} | provenance
    facts |= {
        f"tokens of {part['backbone']}": f"{part['width']} wide, divided by {part['scale']:.4g}" for part in parts
    }
    facts |= {f"split {name}": f"{told['rows']} rows, complete: {told['complete']}"
              for name, told in {**document["splits"], **document["views"]}.items()}  # fmt: skip
    print_table("store", ("fact", "value"), [(key, str(value)) for key, value in facts.items()])


def print_verify(document: Document) -> None:
    """Problems, or that there are none."""
    problems = document["problems"]
    if problems:
        rows = [(p["where"], p["what"], p["hint"]) for p in problems]
        print_table(f"{len(problems)} problems", ("where", "what", "what to do"), rows)
    else:
        print(f"{document['store']}: every byte is as it was written")
