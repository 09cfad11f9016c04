"""Commands that put a trained model to use, and the one that looks at the machine: top-level commands of cspipe."""

from pathlib import Path
from typing import Annotated

import typer

from cspipe.common import Common, with_common

Option, Argument = typer.Option, typer.Argument
model_app = typer.Typer(rich_markup_mode=None)

MODEL = "A head run, a fine-tuning run, a model directory, or latest: the newest run."
Weights = Annotated[Path | None, Option(help="File of backbone weights: .safetensors, or .pth read safely.")]


@model_app.command()
@with_common
def predict(
    model: Annotated[Path, Argument(help=MODEL)],
    images: Annotated[list[str], Argument(help="Files, folders, patterns in quotes.")],
    common: Common,
    out: Annotated[Path | None, Option(help="File of the answers. [default: standard output]")] = None,
    format_: Annotated[
        str | None, Option("--format", help="csv, json or parquet. [default: by the file's suffix, else csv]")
    ] = None,
    abstain_below: Annotated[
        float, Option(metavar="P", help="Flag answers whose calibrated probability is lower.")
    ] = 0.9,
    weights: Weights = None,
) -> None:
    """Say what is on images: class, calibrated probability, whether to ask a person; tokens are cached."""
    from cspipe import predict

    document = predict.predict(
        common, common.config(), model, images, out=out, wanted=format_, abstain_below=abstain_below, weights=weights
    )
    predict.show(document, common)


@model_app.command()
@with_common
def export(
    common: Common,
    to: Annotated[Path, Option(metavar="DIR", help="Folder to write.")],
    model: Annotated[Path, Argument(metavar="[MODEL]", help=MODEL)] = Path("latest"),
    format_: Annotated[str, Option("--format", help="onnx or safetensors.")] = "onnx",
    fresh: Annotated[bool, Option("--fresh", help="Replace the model that lies there.")] = False,
    weights: Weights = None,
) -> None:
    """Write a model for others: one ONNX network from pixels to probabilities, or safetensors with a model card."""
    from cspipe import display, export

    document = export.export(common, common.config(), model, to, kind=format_, weights=weights, fresh=fresh)
    display.show(document, common, export.print_export)


@model_app.command()
@with_common
def suggest(
    common: Common,
    run: Annotated[Path | None, Argument(metavar="[RUN]", help="Head run. [default: the newest]")] = None,
    n: Annotated[int, Option("--n", min=1, help="How many images.")] = 20,
    out: Annotated[Path, Option(metavar="CSV", help="File to fill in.")] = Path("suggested.csv"),
) -> None:
    """List the unlabelled images whose labels would help most, with the head's guess and its calibrated probability.

    The CSV waits for labels, for cspipe head --labels-from.
    """
    from cspipe import display
    from cspipe.suggest import print_suggest, run_suggest

    display.show(run_suggest(common, common.config(), run, n, out), common, print_suggest)


@model_app.command()
@with_common
def doctor(common: Common) -> None:
    """Look at devices, versions, hub and free disk, and say what to do; exit 1 where something stands in the way."""
    from cspipe.display import show
    from cspipe.doctor import examine, print_doctor
    from cspipe.stages import calm

    calm(common)
    document = examine(common.config())
    show(document, common, print_doctor)
    raise typer.Exit(1 if document["problems"] else 0)
