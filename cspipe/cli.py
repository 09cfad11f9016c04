"""The command line: every command parses, calls one function and prints what it returned."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

import cspipe
from cspipe.common import Common, with_common
from cspipe.model_commands import model_app
from cspipe.store.errors import CspipeError
from cspipe.store_commands import store_app

app = typer.Typer(
    no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None,
    help="Adapt a vision foundation model to many images with few labels: extract, head, finetune.",
)  # fmt: skip
app.add_typer(store_app, name="store")
app.add_typer(model_app)

Option, Argument = typer.Option, typer.Argument


def parse_labels(text: str) -> str:
    """`--labels` is a positive number or `all`."""
    if text != "all" and not (text.isdecimal() and int(text) > 0):
        raise typer.BadParameter(f"{text!r} is neither a number of labels nor 'all'.")
    return text


def labels_value(text: str | None) -> int | str | None:
    """The number of labels that a checked `--labels` means."""
    return text if text in (None, "all") else int(str(text))


Labels = Annotated[str | None, Option(metavar="N|all", callback=lambda text: text and parse_labels(text),
                                      help="Labelled rows in all. [default: all where there are unlabelled rows, "
                                           "else 250]")]  # fmt: skip
Weights = Annotated[Path | None, Option(help="File of backbone weights: .safetensors, or .pth read safely.")]
DataDir = Annotated[Path | None, Option(help="Folder with the data set's own files.")]
Augment = Annotated[str | None, Option(help="How views are drawn: affine, photometric, flips, rotations, or several "
                                       "joined by +. [default: affine]")]  # fmt: skip
RemoteCode = Annotated[bool, Option("--trust-remote-code", help="Run the Python of an hf:NAME repository; needs "
                                     "its commit as --revision.")]  # fmt: skip
Tensorboard = Annotated[bool, Option("--tensorboard", help="Write TensorBoard's event files into the run too.")]
Backbone = Annotated[str | None, Option(help="Take the store of this backbone.")]
Dataset = Annotated[str | None, Option(help="Take the store of this data set.")]


def show_version(wanted: bool) -> None:
    """Prints the version and ends."""
    if wanted:
        print(f"cspipe {cspipe.__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, Option("--version", callback=show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Options of the program itself."""


@app.command()
@with_common
def extract(
    backbone: Annotated[
        str,
        Argument(
            metavar="BACKBONE[,BACKBONE...]",
            help="Name of a backbone; see cspipe ls. Several share one decoding of each image.",
        ),
    ],
    dataset: Annotated[str, Argument(help="Name of a data set; or a folder, .csv, .npz, .tar or hf:OWNER/NAME.")],
    common: Common,
    split: Annotated[str | None, Option(help="train, test or all.")] = None,
    weights: Weights = None,
    revision: Annotated[str | None, Option(help="Revision of the weights on the hub.")] = None,
    data_dir: DataDir = None,
    image_px: Annotated[int | None, Option(help="Side of the images in pixels. [default: the backbone's]")] = None,
    token: Annotated[
        str | None,
        Option(metavar="NAME,...", help="Which tokens to store, a store each. [default: the backbone's own]"),
    ] = None,
    dtype: Annotated[str | None, Option(help="fp16 or fp32.")] = None,
    batch_size: Annotated[int | None, Option(help="Images a forward pass; recorded when the store is begun.")] = None,
    devices: Annotated[str | None, Option(metavar="0,1,...", help="GPUs to share the work of one machine.")] = None,
    scheduler: Annotated[str | None, Option(metavar="ADDRESS", help="Dask scheduler whose workers work.")] = None,
    limit: Annotated[int | None, Option(help="Only so many rows of each split, evenly spaced.")] = None,
    views: Annotated[int | None, Option(help="Cache so many augmented views of each training image too.")] = None,
    augment: Augment = None,
    strict: Annotated[bool | None, Option("--strict", help="Stop at the first image that cannot be read.")] = None,
    trust_remote_code: RemoteCode = False,
    dry_run: Annotated[bool, Option("--dry-run", help="Only tell what would be done, and how long it would take.")] = (
        False
    ),
) -> None:
    """Run a frozen backbone once over the images and cache its tokens."""
    from cspipe import display, stages

    changes = {
        "backbone": backbone, "dataset": dataset, "split": split, "weights": weights, "revision": revision,
        "data_dir": data_dir, "image_px": image_px, "token": token, "dtype": dtype, "batch_size": batch_size,
        "devices": [f"cuda:{n}" if n.isdecimal() else n for n in devices.split(",")] if devices else None,
        "scheduler": scheduler, "limit": limit, "views": views, "augment": augment, "strict": strict,
        "trust_remote_code": trust_remote_code or None,
    }  # fmt: skip
    document = stages.extract(common, common.config(extract=changes), dry_run=dry_run)
    display.show(document, common, display.print_rehearsal if dry_run else display.print_extract)


@app.command()
@with_common
def head(
    common: Common,
    labels: Labels = None,
    seeds: Annotated[int | None, Option(help="Labelled splits: split seeds 0..N-1. [default: 5]")] = None,
    train_seed: Annotated[int | None, Option(help="Seed of weights and batches.")] = None,
    draw: Annotated[str | None, Option(help="How labelled rows are drawn: balanced or natural.")] = None,
    method: Annotated[str | None, Option(metavar="NAME,...", help="Methods to compare.")] = None,
    backbone: Backbone = None,
    dataset: Dataset = None,
    test_dataset: Annotated[
        str | None, Option(metavar="DATASET", help="Judge on this data set's store of the same backbone instead.")
    ] = None,
    labels_from: Annotated[
        list[Path] | None,
        Option(metavar="CSV", help="Further labels: what cspipe suggest wrote, filled in. May be given again."),
    ] = None,
    set_: Annotated[list[str] | None, Option("--set", metavar="KEY=VALUE", help="A setting of the head.")] = None,
    tensorboard: Tensorboard = False,
) -> None:
    """Train content-style heads on cached tokens, beside what they must beat."""
    from cspipe import display, stages
    from cspipe.event_files import with_events

    changes = {
        "labels": labels_value(labels), "seeds": seeds, "train_seed": train_seed, "draw": draw,
        "methods": method.split(",") if method else None, "test_dataset": test_dataset,
        "labels_from": [str(path) for path in labels_from] if labels_from else None,
    }  # fmt: skip
    config = common.config(head=changes, assignments=set_ or ())
    store = stages.choose_store(config, backbone=backbone, dataset=dataset)
    document = with_events(tensorboard, lambda: stages.head(common, config, store))
    display.show(document, common, display.print_head)


@app.command()
@with_common
def finetune(
    common: Common,
    head: Annotated[Path | None, Option(metavar="RUN", help="Head run to start from. [default: the newest]")] = None,
    split_seed: Annotated[int | None, Option(help="Which of its splits. [default: 0]")] = None,
    unfreeze: Annotated[bool, Option("--unfreeze", help="Train the whole backbone.")] = False,
    unfreeze_blocks: Annotated[int | None, Option(help="Train the last N blocks of the backbone.")] = None,
    labels: Annotated[int | None, Option(help="Start from the newest head run with so many labels.")] = None,
    method: Annotated[str | None, Option(help="Objective: content-style or supervised.")] = None,
    regulariser: Annotated[list[str] | None, Option(metavar="NAME=WEIGHT", help="Keep what the backbone knew.")] = None,
    adapter: Annotated[str | None, Option(help="none, or lora: low-rank additions learn, and are merged.")] = None,
    weights: Weights = None,
    data_dir: DataDir = None,
    epochs: Annotated[int | None, Option(help="Passes over the training images.")] = None,
    limit: Annotated[int | None, Option(help="At most so many training images, evenly spaced.")] = None,
    kept_dataset: Annotated[
        str | None, Option(metavar="DATASET", help="Judge on its images too what the backbone still knows.")
    ] = None,
    set_: Annotated[list[str] | None, Option("--set", metavar="KEY=VALUE", help="A setting of fine-tuning.")] = None,
    backbone: Backbone = None,
    dataset: Dataset = None,
    tensorboard: Tensorboard = False,
) -> None:
    """Train the backbone too, starting from a head."""
    from cspipe import display, stages
    from cspipe.config import parse_settings
    from cspipe.event_files import with_events

    if not unfreeze and unfreeze_blocks is None:
        raise typer.BadParameter("say --unfreeze or --unfreeze-blocks N; the frozen regime is cspipe head.")
    if unfreeze and unfreeze_blocks is not None:
        raise typer.BadParameter("--unfreeze trains every block: leave out one of --unfreeze and --unfreeze-blocks.")
    changes = {
        "split_seed": split_seed, "unfreeze": unfreeze, "unfreeze_blocks": unfreeze_blocks, "labels": labels,
        "epochs": epochs, "limit": limit, "weights": weights, "data_dir": data_dir, "method": method,
        "regularisers": stages.parse_weights(regulariser) if regulariser else None, "adapter": adapter,
        "kept_dataset": kept_dataset,
    }  # fmt: skip
    config = common.config(finetune=changes | parse_settings(set_ or (), ""))
    named = stages.choose_store(config, backbone=backbone, dataset=dataset) if backbone or dataset else None
    document = with_events(tensorboard, lambda: stages.finetune(common, config, head, named))
    display.show(document, common, display.print_finetune)


@app.command()
@with_common
def run(common: Common) -> None:
    """Do what pipeline.toml says, all stages, and write the report."""
    from cspipe import display, stages

    display.show(stages.run(common, common.config()), common, display.print_run)


@app.command()
@with_common
def sweep(
    common: Common,
    fresh: Annotated[bool, Option("--fresh", help="Begin anew, also where this very sweep is there already.")] = False,
) -> None:
    """Run the grid of pipeline.toml cell by cell, and compare; the same command goes on where it was stopped."""
    from cspipe import display, sweep

    document = sweep.run_sweep(common, common.config(), fresh=fresh)
    display.show(document, common, sweep.print_sweep)
    raise typer.Exit(1 if document["failed"] else 0)


@app.command()
@with_common
def report(
    common: Common,
    which: Annotated[list[Path] | None, Argument(metavar="[RUN]...", help="Run folders. [default: the newest]")] = None,
    data_dir: DataDir = None,
) -> None:
    """Write one self-contained HTML page about runs."""
    from cspipe import display, stages

    display.show(stages.report(common.config(), which or [], data_dir), common, display.print_report)


@app.command()
@with_common
def explore(
    common: Common,
    run: Annotated[Path | None, Argument(metavar="[RUN]", help="Head run. [default: the newest]")] = None,
    limit: Annotated[int, Option(min=10, help="Rows on the map at most, evenly spaced.")] = 100_000,
    data_dir: DataDir = None,
) -> None:
    """Write a page with every row of a head run's store on a map: look, colour, lasso, search."""
    from cspipe import display, stages

    document = stages.explore(common, common.config(), run, limit=limit, data_dir=data_dir)
    display.show(document, common, display.print_explore)


@app.command()
@with_common
def prefetch(
    backbone: Annotated[str, Argument(help="Name of a backbone; see cspipe ls.")],
    dataset: Annotated[str, Argument(help="Name of a data set; or a folder, .csv, .npz, .tar or hf:OWNER/NAME.")],
    common: Common,
    revision: Annotated[str | None, Option(help="Revision of the weights on the hub.")] = None,
    data_dir: DataDir = None,
    trust_remote_code: RemoteCode = False,
) -> None:
    """Bring weights and images onto this machine, for work without a network."""
    from cspipe.display import show
    from cspipe.prefetch import prefetch, print_prefetch
    from cspipe.stages import calm

    calm(common)
    document = prefetch(
        backbone, dataset, revision=revision, data_dir=data_dir, trust_remote_code=trust_remote_code
    )  # fmt: skip
    show(document, common, print_prefetch)


@app.command("ls")
@with_common
def list_all(common: Common) -> None:
    """List backbones, data sets, stores and runs."""
    from cspipe import display, stages

    display.show(stages.listing(common.config()), common, display.print_listing)


def main(arguments: list[str] | None = None) -> Any:  # noqa: ANN401
    """Runs the program; a `CspipeError` is one line on standard error and exit 1, Ctrl-C is exit 130."""
    try:
        app(arguments, prog_name="cspipe")
    except CspipeError as error:
        from cspipe.terminal import message

        message(f"cspipe: {error}")
        sys.exit(1)
    except KeyboardInterrupt:
        print("cspipe: stopped; the same command goes on where it was.", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
