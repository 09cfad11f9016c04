"""`cspipe prefetch` and the backbones of `cspipe ls`."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cspipe.cli import main
from cspipe.networks import backbones, print_backbones


@pytest.fixture
def pictures(tmp_path):
    """Four pictures of two classes."""
    for number in range(4):
        file = tmp_path / "pictures" / f"class{number % 2}" / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), number, np.uint8)).save(file)
    return tmp_path / "pictures"


def document(capsys, *arguments):
    """The JSON document of a command."""
    with pytest.raises(SystemExit) as ended:
        main([*map(str, arguments), "--json"])
    told = capsys.readouterr()
    assert ended.value.code in (0, None), told.err
    return json.loads(told.out)


def test_prefetch_tells_where_every_file_lies_with_its_size_and_hash(capsys, pictures):
    told = document(capsys, "prefetch", "lite0", pictures)
    (weights,) = told["weights"]
    assert weights["path"].endswith("efficientnet-lite0-57934424.pth")
    assert weights["sha256"] == told["weights_sha256"] == hashlib.sha256(Path(weights["path"]).read_bytes()).hexdigest()
    assert weights["bytes"] == Path(weights["path"]).stat().st_size
    assert [Path(file["path"]).name for file in told["data"]] == ["0.png", "2.png", "1.png", "3.png"]
    assert told["images"] == {"train": 4} and told["licence"] == "Apache-2.0"


def test_prefetch_prints_the_same_for_a_person(capsys, pictures):
    with pytest.raises(SystemExit):
        main(["prefetch", "lite0", str(pictures)])
    told = capsys.readouterr().out
    assert "57934424" in told and "Apache-2.0" in told and "3.png" in told
    with pytest.raises(SystemExit):
        main(["prefetch", "lite0", "digits"])
    assert "scikit-learn load_digits, part of the installation" in capsys.readouterr().out


def test_prefetch_without_a_network_is_a_plain_error_with_the_way_out(capsys, pictures, monkeypatch):
    import huggingface_hub

    def refuse(*args, **kwargs):
        raise ConnectionError("no route to host")

    def no_cache(*args, **kwargs):
        raise huggingface_hub.errors.LocalEntryNotFoundError("not cached")

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", refuse)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", no_cache)
    with pytest.raises(SystemExit) as ended:
        main(["prefetch", "clip-b32", str(pictures)])
    told = capsys.readouterr()
    assert ended.value.code == 1 and told.out == "" and "no route to host" in told.err and "--weights FILE" in told.err


def test_every_backbone_is_listed_with_all_its_tokens():
    listed = {told["name"]: told for told in backbones()}
    assert listed["clip-b32"]["width"] == 768 and listed["clip-b32"]["parameters"] == 87_849_216
    assert listed["radiov2.5-b"]["tokens"][:4] == ["summary", "summary:0", "summary:1", "summary:2"]
    assert listed["dinov2-s"]["tokens"][-1] == "block-12"
    assert "non-commercial" in listed["radiov2"]["licence"] and "commercial too" in listed["cradiov4-h"]["licence"]
    assert json.loads(json.dumps(list(listed.values())))


def test_the_table_of_backbones_fits_a_hundred_columns_one_line_each(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    print_backbones(backbones())
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    for told in backbones():
        (line,) = [line for line in lines if line.startswith(f"│ {told['name']} ")]
        assert told["licence"] in line and f" {told['width']} " in line


def test_listing_backbones_and_help_load_no_library_of_networks():
    code = (
        "import sys, cspipe.networks, cspipe.cli; cspipe.networks.backbones(); "
        "print([m for m in ('torch', 'timm', 'open_clip', 'transformers', 'torchvision') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ})
    assert done.stdout.strip() == "[]"
