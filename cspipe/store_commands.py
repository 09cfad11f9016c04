"""``cspipe store``: looking after the stores of cached tokens."""

from pathlib import Path
from typing import Annotated

import typer

from cspipe.common import Common, with_common

Option, Argument = typer.Option, typer.Argument
store_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Look after the stores of cached tokens.")

StorePath = Annotated[Path | None, Argument(help="Path or URL of the store. [default: the one extracted last]")]
Yes = Annotated[bool, Option("--yes", help="Do not ask.")]


@store_app.command("ls")
@with_common
def store_ls(common: Common) -> None:
    """List the stores."""
    from cspipe import display, stages

    display.show({"stores": stages.list_of_stores(common.config())}, common, display.print_stores)


@store_app.command("info")
@with_common
def store_info(common: Common, path: StorePath = None) -> None:
    """Show what a store holds and where it came from."""
    from cspipe import display, stages

    display.show(stages.store_info(common.config(), path), common, display.print_store_info)


@store_app.command("verify")
@with_common
def store_verify(common: Common, path: StorePath = None) -> None:
    """Check every byte of a store; exit 1 where anything is wrong."""
    from cspipe import display, stages

    document = stages.verify(common.config(), path)
    display.show(document, common, display.print_verify)
    raise typer.Exit(1 if document["problems"] else 0)


@store_app.command("repair")
@with_common
def store_repair(
    common: Common,
    path: StorePath = None,
    data_dir: Annotated[Path | None, Option(help="Where the images are, if not where they were.")] = None,
    weights: Annotated[Path | None, Option(help="File of the backbone's weights, if not where it was.")] = None,
) -> None:
    """Compute damaged and missing chunks again, and no others; exit 1 where anything stays wrong."""
    from cspipe import care, display

    document = care.repair(common, common.config(), path, data_dir, weights)
    display.show(document, common, care.print_repair)
    raise typer.Exit(1 if document["problems"] else 0)


@store_app.command("import")
@with_common
def store_import(
    embeddings: Annotated[Path, Argument(metavar="EMB.npy", help="Embeddings, one a row.")],
    labels: Annotated[Path, Option(help="CSV with a column label, and split and id if wanted; or labels alone.")],
    common: Common,
    test: Annotated[Path | None, Option(metavar="EMB.npy", help="Embeddings of the test split.")] = None,
    test_labels: Annotated[Path | None, Option(help="CSV that belongs to --test.")] = None,
    name: Annotated[str | None, Option(help="Name of the data set. [default: the file's]")] = None,
    backbone: Annotated[str, Option(help="What the embeddings were made by.")] = "own",
    dtype: Annotated[str | None, Option(help="fp16 or fp32. [default: the file's]")] = None,
) -> None:
    """Make a store of embeddings of your own, for cspipe head; again with a grown file adds the new rows."""
    from cspipe import care, display

    if (test is None) != (test_labels is None):
        raise typer.BadParameter("--test and --test-labels go together.")
    document = care.import_embeddings(common.config(), embeddings, labels, test, test_labels, name, backbone, dtype)
    display.show(document, common, care.print_import)


@store_app.command("join")
@with_common
def store_join(
    paths: Annotated[list[Path], Argument(metavar="STORE...", help="Stores of one data set.")],
    common: Common,
) -> None:
    """Make a store of several backbones' tokens side by side, for cspipe head; again brings it up to date."""
    from cspipe import care, display

    display.show(care.join(common.config(), paths), common, care.print_join)


@store_app.command("export")
@with_common
def store_export(
    common: Common,
    path: StorePath = None,
    to: Annotated[Path | None, Option(help="Folder of the files. [default: the store's name]")] = None,
    views: Annotated[bool, Option("--views", help="The cached views too.")] = False,
) -> None:
    """Write each split as an .npy of embeddings and a .csv of row ids, labels and images."""
    from cspipe import care, display

    display.show(care.export(common.config(), path, to, views=views), common, care.print_export)


@store_app.command("rm")
@with_common
def store_rm(
    paths: Annotated[list[Path], Argument(metavar="PATH...", help="Stores to remove.")],
    common: Common,
    yes: Yes = False,
) -> None:
    """Remove stores, after asking."""
    from cspipe import care, display

    if not yes:
        typer.confirm(f"Remove {', '.join(map(str, paths))} for good?", abort=True, err=True)
    display.show(care.remove(paths), common, care.print_removed)


@store_app.command("unlock")
@with_common
def store_unlock(
    place: Annotated[str, Argument(metavar="URL", help="The store.")],
    common: Common,
) -> None:
    """Let writers into a remote store whose writer was killed on another machine; make sure that it is no more."""
    from cspipe import care, display

    display.show(care.unlock(place), common, care.print_unlocked)


@store_app.command("gc")
@with_common
def store_gc(common: Common, yes: Yes = False) -> None:
    """Remove what interrupted runs left behind, after asking; never a finished chunk."""
    from cspipe import care, display

    found = care.collect(common.config(), remove=yes)
    if found["garbage"] and not yes and not common.json:
        care.print_garbage(found)
        typer.confirm("Remove these?", abort=True, err=True)
        found = care.collect(common.config(), remove=True)
    display.show(found, common, care.print_garbage)


@store_app.command("duplicates")
@with_common
def store_duplicates(
    common: Common,
    path: StorePath = None,
    near: Annotated[
        float | None, Option(metavar="COSINE", help="Images whose tokens are so alike. [default: equal images]")
    ] = None,
    limit: Annotated[int, Option(min=1, help="Pairs that are listed, the most alike first.")] = 100,
) -> None:
    """List images that lie in the training and in the test split."""
    from cspipe import data, display

    display.show(data.duplicates(common.config(), path, near, limit), common, data.print_duplicates)
