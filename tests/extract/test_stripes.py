"""Stripes: the published example pixel for pixel, the same geometry under both colours, the authors' own files."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
from small_files import hub_table, images_of, png

from cspipe.extract.datasets import load_dataset
from cspipe.extract.images import decode
from cspipe.extract.stripes import Stripes, draw_stripes, stripes_mask
from cspipe.store.errors import MissingDataError, SettingError

PUBLISHED = Stripes(3.0, -41.450286865234375, 9.0)
# Which pixels are stripe in the picture of row 15 of the published training split, a row of 28 bits each.
PUBLISHED_ROWS = """
00f80f8 807807c c03c03e e03e01e f01f00f f80f807 7c07c07 3c03e03 1e01f01 1f00f00 0f80780 07c03c0 03e03e0 01f01f0
80f80f8 c07807c e03c03e f01e01f f01f00f 780f807 7c07c07 3e03e03 1f01f01 0f80f80 07c0780 03c03c0 01e03e0 81f01f0
"""
DIGITS = [str(digit) for digit in range(10)]


def test_the_published_example_is_drawn_pixel_for_pixel():
    rows = ["".join("01"[int(covered)] for covered in row) for row in stripes_mask(28, 28, PUBLISHED)]
    assert rows == [f"{int(row, 16):028b}" for row in PUBLISHED_ROWS.split()]


@pytest.mark.parametrize("change", [{"width": 4.0}, {"angle": -40.0}, {"angle": 41.45}, {"spacing": 8.0}])
def test_another_geometry_gives_another_mask(change):
    other = Stripes(**{"width": 3.0, "angle": PUBLISHED.angle, "spacing": 9.0} | change)
    assert (stripes_mask(28, 28, other) != stripes_mask(28, 28, PUBLISHED)).sum() > 20


def test_stripes_are_upright_at_0_degrees_and_cover_width_over_spacing():
    upright = stripes_mask(28, 28, Stripes(3.0, 0.0, 9.0))
    assert np.array_equal(upright, np.broadcast_to(upright[0], upright.shape))
    starts = np.flatnonzero(upright[0] & ~np.r_[False, upright[0][:-1]])
    assert np.diff(starts).tolist() == [9, 9]
    assert all(upright[0, start : start + 4].tolist() == [True, True, True, False] for start in starts[:2])


def test_both_colours_have_the_same_stripes_over_the_same_digit(mnist_dir):
    plain, white, yellow = (
        load_dataset(name, data_dir=mnist_dir).splits["train"].load(3)
        for name in ("mnist", "mnist-white-stripes", "mnist-yellow-stripes")
    )
    mask = stripes_mask(28, 28, draw_stripes(0, "train", 3))
    assert 0.1 < mask.mean() < 0.7
    assert np.all(white[mask] == (255, 255, 255))
    assert np.all(yellow[mask] == (255, 165, 79))
    for striped in (white, yellow):
        assert np.array_equal(striped[~mask], np.repeat(plain[~mask][:, None], 3, axis=1))


def test_stripes_depend_on_seed_split_and_image_alone():
    assert draw_stripes(0, "train", 5) == draw_stripes(0, "train", 5)
    others = [draw_stripes(1, "train", 5), draw_stripes(0, "test", 5), draw_stripes(0, "train", 6)]
    assert all(other != draw_stripes(0, "train", 5) for other in others)


def write_saved(folder: Path, kind: str) -> dict[str, np.ndarray]:
    """A data set as its authors saved it: arrow streams, or one parquet file a split, with the geometry's columns."""
    import pyarrow as pa
    from pyarrow import parquet

    written = {}
    folder.mkdir(parents=True)
    for split, count in (("train", 12), ("test", 10)):
        written[split] = images_of(count, 28, count)
        columns = {
            "image_id": [f"{split}_{i:05d}.png" for i in range(count)], "label": [i % 10 for i in range(count)],
            "width": [3.0] * count, "angle": [-41.45] * count, "spacing": [9.0] * count, "split": [split] * count,
        }  # fmt: skip
        table = hub_table([png(image) for image in written[split]], columns)
        if kind == "parquet":
            parquet.write_table(table, folder / f"{split}-00000-of-00001.parquet")
            continue
        (folder / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))
        (folder / split).mkdir()
        file = str(folder / split / "data-00000-of-00001.arrow")
        with pa.OSFile(file, "wb") as sink, pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table, max_chunksize=5)
    return written


@pytest.mark.parametrize("kind", ["arrow", "parquet"])
@pytest.mark.parametrize("name", ["mnist", "mnist-white-stripes", "mnist-yellow-stripes"])
@pytest.mark.parametrize("inside", [True, False])
def test_the_authors_own_folders_are_read_as_they_are(tmp_path, kind, name, inside):
    folder = tmp_path / name.replace("-", "_")
    written = write_saved(folder, kind)
    given = folder if inside else tmp_path
    data = load_dataset(name, data_dir=given)
    assert (data.name, data.class_names, data.source) == (name, DIGITS, str(given))
    for split, images in written.items():
        mine = data.splits[split]
        assert mine.labels.tolist() == [i % 10 for i in range(len(images))]
        assert all(np.array_equal(np.asarray(decode(mine.load(i))), image) for i, image in enumerate(images))


def test_the_folder_of_the_other_colour_is_not_taken_for_this_one(tmp_path):
    write_saved(tmp_path / "mnist_white_stripes", "arrow")
    with pytest.raises(MissingDataError, match="mnist-yellow-stripes"):
        load_dataset("mnist-yellow-stripes", data_dir=tmp_path / "mnist_white_stripes")


def test_a_pointer_of_git_lfs_and_a_truncated_arrow_file_are_told_plainly(tmp_path):
    folder = tmp_path / "mnist_white_stripes"
    write_saved(folder, "arrow")
    file = folder / "train" / "data-00000-of-00001.arrow"
    content = file.read_bytes()
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(MissingDataError, match=r"data-00000-of-00001\.arrow is only a pointer of Git LFS: run git lfs"):
        load_dataset("mnist-white-stripes", data_dir=tmp_path)
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(SettingError, match=r"data-00000-of-00001\.arrow is damaged.*fetch the file again"):
        load_dataset("mnist-white-stripes", data_dir=tmp_path)


def test_the_picture_of_the_docs_is_two_rows_of_eight_and_small(mnist_dir, tmp_path):
    draw = runpy.run_path(str(Path(__file__).parents[2] / "docs" / "stripes.py"))["draw"]
    draw(mnist_dir, tmp_path / "stripes.png")
    picture = decode(tmp_path / "stripes.png")
    assert picture.width == 4 * picture.height
    assert (tmp_path / "stripes.png").stat().st_size < 60_000
    colours = {tuple(colour) for colour in np.asarray(picture).reshape(-1, 3)[::7]}
    assert {(255, 255, 255), (255, 165, 79)} <= colours
