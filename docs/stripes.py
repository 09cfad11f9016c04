"""Draws docs/images/stripes.png: eight digits under white and under yellow stripes.

Run from the repository: python docs/stripes.py FOLDER, with MNIST's four files in FOLDER.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from cspipe.extract.datasets import load_dataset

PICTURE = Path(__file__).parent / "images" / "stripes.png"
DIGITS = 8
SCALE = 3
GAP = 2


def draw(data_dir: Path, picture: Path) -> None:
    """Write the picture: a row a colour, a column a digit, each pixel three wide."""
    rows = []
    for colour in ("white", "yellow"):
        train = load_dataset(f"mnist-{colour}-stripes", data_dir=data_dir).splits["train"]
        tiles = [np.asarray(train.load(image)).repeat(SCALE, 0).repeat(SCALE, 1) for image in range(DIGITS)]
        rows.append(np.hstack([np.pad(tile, ((GAP, GAP), (GAP, GAP), (0, 0)), constant_values=128) for tile in tiles]))
    picture.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.vstack(rows)).save(picture, optimize=True)


if __name__ == "__main__":
    draw(Path(sys.argv[1]), PICTURE)
