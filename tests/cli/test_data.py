"""`cspipe ls` of data sets, and `cspipe store duplicates`."""

import numpy as np
import pytest


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A folder with a store whose two test images are both training images too, one of them unlabelled."""
    from cspipe.cli import main

    folder = tmp_path_factory.mktemp("shared")
    images = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)
    labels = [0, 1, 0, 1, -1, 0]
    np.savez(folder / "pets.npz", images=images, labels=labels, test_images=images[3:5], test_labels=[1, 0])
    with pytest.raises(SystemExit) as end:
        main(["extract", "lite0", str(folder / "pets.npz"), "--image-px", "32", "--stores", str(folder), "--quiet"])
    assert not end.value.code
    return folder


def test_ls_tells_images_classes_side_and_origin_of_every_data_set_in_100_columns(
    cspipe, document, places, monkeypatch
):
    told = {entry["name"]: entry for entry in document("ls", *places)["datasets"]}
    assert told["stl10"] == {
        "name": "stl10", "train": 5000, "unlabelled": 100000, "test": 8000, "classes": 10, "side_px": 96,
        "from": "torchvision", "what": "things and animals", "url": "https://cs.stanford.edu/~acoates/stl10/",
    }  # fmt: skip
    monkeypatch.setenv("COLUMNS", "100")
    _, out, _ = cspipe("ls", *places)
    line = next(line for line in out.splitlines() if "mnist-yellow-stripes" in line)
    cells = [cell.strip() for cell in line.split("│")[1:-1]]
    assert cells == ["mnist-yellow-stripes", "60,000", "10,000", "10", "28", "torchvision"]


def test_duplicates_lists_equal_images_with_rows_and_paths(cspipe, document, shared):
    told = document("store", "duplicates", "--stores", shared)
    assert (told["duplicates"], told["count"], told["near"]) == ({"train/test": 2}, 2, None)
    assert told["pairs"][1] == {
        "first": {"split": "train", "row_id": 4, "path": "train/00004"},
        "second": {"split": "test", "row_id": 1, "path": "test/00001"},
        "cosine": None,
    }
    code, out, _ = cspipe("store", "duplicates", "--stores", shared, "--limit", "1")
    assert code == 0 and "2 pairs of equal images" in out and "1 of 2 pairs are shown" in out


def test_near_duplicates_come_with_their_cosine(cspipe, document, shared):
    store = next(shared.glob("*.zarr"))
    told = document("store", "duplicates", store, "--near", "0.9999", "--limit", "2")
    assert {(pair["first"]["row_id"], pair["second"]["row_id"]) for pair in told["pairs"]} == {(3, 0), (4, 1)}
    assert all(pair["cosine"] > 0.9999 for pair in told["pairs"])
    code, _, err = cspipe("store", "duplicates", store, "--near", "98")
    assert code == 1 and "--near is a cosine above 0 and at most 1" in err


def test_a_store_without_duplicates_says_so(cspipe, places):
    code, out, _ = cspipe("store", "duplicates", *places)
    assert code == 0 and "no pair of equal images in two splits" in out
