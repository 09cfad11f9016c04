"""2,000 real JPEGs in a folder with one of every kind of bad and of odd image among them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cspipe.store import open_store
from cspipe.store.verify import verify_store


def photographs() -> list[Path]:
    """The textile images of the installed package."""
    package = pytest.importorskip("conformal_clip_data")
    return sorted((Path(package.__file__).parent / "data/textile_images/simulated").rglob("*.jpg"))


def add_bad(folder: Path, jpeg: bytes) -> set[str]:
    """One file of every kind that cannot be used; returns their names."""
    whole = Image.fromarray(np.zeros((8, 8), np.float32))
    whole.save(folder / "floating.tiff")
    (folder / "truncated.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.jpg").write_bytes(b"this is no image\n")
    Image.new("1", (20_000, 20_000)).save(folder / "bomb.png")  # 400 million pixels in 50 kB
    return {"floating.tiff", "truncated.jpg", "empty.jpg", "text.jpg", "bomb.png"}


def add_odd(folder: Path, image: Image.Image) -> set[str]:
    """One file of every kind that is unusual and can be used; returns their names."""
    image.convert("CMYK").save(folder / "cmyk.jpg")
    image.convert("P").save(folder / "palette.png")
    image.convert("RGBA").save(folder / "alpha.png")
    Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257).save(folder / "sixteen.png")
    image.save(folder / "animated.gif", save_all=True, append_images=[image.rotate(90)])
    turned = Image.Exif()
    turned[0x0112] = 6
    image.save(folder / "turned.jpg", exif=turned)
    odd = ["=cmd().jpg", "a b\tc.jpg", "\x1b[31mred.jpg", "ünïcode 像.jpg", "<script>.jpg"]
    for number, name in enumerate(odd):
        image.rotate(number + 1).save(folder / name)
    return {"cmyk.jpg", "palette.png", "alpha.png", "sixteen.png", "animated.gif", "turned.jpg", *odd}


def run_extract(folder: Path, stores: Path, weights: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """The command as a user gives it."""
    command = [sys.executable, "-m", "cspipe.cli", "extract", "timm:test_vit", str(folder), "--stores", str(stores),
               "--weights", str(weights), "--image-px", "16", "--json", *more]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=600, env={**os.environ, "COLUMNS": "400"})


@pytest.mark.slow
def test_a_real_folder_flags_what_is_bad_uses_what_is_odd_and_changes_no_other_row(tmp_path, weights):
    found, clean, mixed = photographs(), tmp_path / "clean/textile", tmp_path / "mixed/textile"
    assert len(found) == 2000
    clean.mkdir(parents=True)
    for number, path in enumerate(found):
        shutil.copy(path, clean / f"{number:04d}.jpg")
    shutil.copytree(clean, mixed)
    bad, odd = add_bad(mixed, found[0].read_bytes()), add_odd(mixed, Image.open(found[1]).convert("RGB"))
    (mixed / "circle").symlink_to(mixed, target_is_directory=True)
    (mixed / "nowhere.jpg").symlink_to(tmp_path / "gone.jpg")
    bad.add("nowhere.jpg")

    first, second = (run_extract(folder.parent, tmp_path / folder.parent.name, weights) for folder in (clean, mixed))
    assert first.returncode == second.returncode == 0, second.stderr
    alone, among = json.loads(first.stdout), json.loads(second.stdout)
    assert alone["splits"]["train"]["rows"] == 2000 and alone["bad_images"] == []
    assert {Path(entry["path"]).name for entry in among["bad_images"]} == bad
    assert all(entry["reason"] for entry in among["bad_images"])
    assert among["splits"]["train"]["rows"] == 2000 + len(bad) + len(odd)
    assert among["splits"]["train"]["flagged"] == len(bad)

    here, there = (open_store(document["store"])["train"] for document in (alone, among))
    assert {Path(path).name for path in there.path()} == odd | {Path(path).name for path in here.path()}
    assert np.isfinite(there.embedding()).all()
    token = dict(zip(there.path(), there.embedding(), strict=True))
    for path, row in zip(here.path(), here.embedding(), strict=True):
        np.testing.assert_allclose(token[path].astype(float), row.astype(float), rtol=0.01, atol=0.01)
    assert verify_store(among["store"]) == []

    strict = run_extract(mixed.parent, tmp_path / "strict", weights, "--strict")
    assert strict.returncode == 1 and "--strict" in strict.stderr and "Traceback" not in strict.stderr
