"""Extraction: how near it comes to the bare forward pass, how fast it is beside other tools, how much memory it takes.

    python benchmarks/extract.py [--part PART ...] [--data-dir DIR] [--peer-python PYTHON] [--out FILE]

arrays     MNIST in memory against the bare forward pass on prepared batches
jpegs      a folder of JPEGs against 1 / (1 / decode + 1 / forward)
loop       the same JPEGs against the loop that a user would write
peers      the same JPEGs against transformers' pipeline and imagededup, same weights
memory     peak resident memory against the number of images

The backbone is lite0, whose weights come with the installation. Without --data-dir the arrays are scikit-learn's
digits; the JPEGs are the textiles of the package conformal-clip-data, or --jpegs.
"""

import argparse
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import extract_forward
import extract_memory
import extract_peers
from extract_bench import PACKAGES, Bench, introduce, make_bench, make_folder, processor, textiles

from cspipe.headtrain.runs import environment, write_json
from cspipe.store.errors import CspipeError, SettingError

Told = argparse.Namespace


def arrays(bench: Bench, told: Told) -> dict[str, Any]:
    """Images in memory."""
    return extract_forward.arrays(bench, "mnist" if told.data_dir else "digits", told.data_dir, told.array_images)


def images(bench: Bench, told: Told) -> Path:
    """The folder of JPEGs, made once."""
    folder = bench.folder / "jpegs"
    if not folder.is_dir():
        found = sorted(told.jpegs.glob("*/*.jp*g")) if told.jpegs else textiles()
        make_folder(found, min(told.images, len(found)) // bench.batch_size * bench.batch_size, folder)
    return folder


def loop(bench: Bench, told: Told) -> list[dict[str, Any]]:
    """Against a user's own loop."""
    return extract_peers.compare(bench, images(bench, told), [extract_peers.loop(bench)], "A loop")


def peers(bench: Bench, told: Told) -> list[dict[str, Any]]:
    """Against published tools; one that is not there is left out, with the reason."""
    model = extract_peers.write_model(bench)
    ways = [extract_peers.transformers_pipeline(bench, model)]
    try:
        if told.peer_python is None:
            raise SettingError("--peer-python names no Python that has it")
        ways.append(extract_peers.imagededup(bench, model, told.peer_python))
    except SettingError as error:
        print(f"\nimagededup is left out: {error}", flush=True)
    return extract_peers.compare(bench, images(bench, told), ways, "Published tools")


PARTS: dict[str, Callable[[Bench, Told], Any]] = {
    "arrays": arrays,
    "jpegs": lambda bench, told: extract_forward.jpegs(bench, images(bench, told)),
    "loop": loop,
    "peers": peers,
    "memory": lambda bench, told: extract_memory.measure(told.memory_rows, told.memory_repeats),
}


def parse(arguments: list[str] | None) -> Told:
    """The command's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--data-dir", type=Path, help="folder of MNIST's four files")
    parser.add_argument("--jpegs", type=Path, help="folder of CLASS/*.jpg")
    parser.add_argument("--images", type=int, default=2000, help="JPEGs of a run, rounded down to whole batches")
    parser.add_argument("--array-images", type=int, default=8192, help="arrays of a run, likewise")
    parser.add_argument("--image-px", type=int, default=112)
    parser.add_argument("--rounds", type=int, default=9, help="timed runs of each, alternating")
    parser.add_argument("--peer-python", type=Path, help="a Python with imagededup, timm and torch")
    parser.add_argument("--memory-rows", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--memory-repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where stores and images are written; default: the system's own")
    parser.add_argument("--out", type=Path, help="keep all figures in this JSON file")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Measures and prints."""
    told, begun = parse(arguments), time.perf_counter()
    with TemporaryDirectory(dir=told.folder, prefix="extract-") as name:
        try:
            bench = make_bench(Path(name), image_px=told.image_px, rounds=told.rounds)
            introduce(bench)
            found = {part: PARTS[part](bench, told) for part in told.part}
        except CspipeError as error:
            sys.exit(f"benchmarks/extract.py: {error}")
    if told.out:
        versions = {name: version(name) for name in PACKAGES}
        write_json(told.out, {
            "command": sys.argv, "image_px": told.image_px, "batch_size": bench.batch_size, "workers": bench.workers,
            "rounds": told.rounds, "environment": environment() | versions | {"processor": processor()},
            "seconds": time.perf_counter() - begun, "parts": found,
        })  # fmt: skip


if __name__ == "__main__":
    main()
