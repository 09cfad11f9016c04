"""Several backbones and tokens in one decoding pass give the very stores that each would have given alone."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cspipe.cli import main
from cspipe.config import Config, override
from cspipe.extract.embed import make_lane, probe, probe_image
from cspipe.extract.images import BadImageError
from cspipe.extract.run import extract, extract_all
from cspipe.extract.targets import Request
from cspipe.stages import requests_of
from cspipe.store.errors import MismatchError, SettingError, UnknownNameError
from cspipe.store.layout import latest_store
from cspipe.store.reader import open_store
from cspipe.store.verify import verify_store


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Chunks of 64 rows for tokens 64 wide, 32 for wider ones, so that chunks of several stores do not line up."""
    monkeypatch.setattr("cspipe.store.opening.chunk_rows", lambda width, itemsize: 64 if width <= 64 else 32)


@pytest.fixture
def requests(tiny, tiny_weights):
    """A backbone with two tokens, and another one at another side and batch size."""
    other = replace(tiny, name="other", image_px=48, batch_size=4)
    return [Request(tiny, ("cls", "cls+mean"), tiny_weights), Request(other, (None,), tiny_weights)]


def files_of(store):
    """Every file of a store but the advisory sources: name -> bytes."""
    return {path.relative_to(store): path.read_bytes() for path in sorted(Path(store).glob("*/**/*")) if path.is_file()}


def alone(request, token, folder, **options):
    """The store of one token, extracted by itself."""
    return extract(
        request.backbone, "digits", stores=folder, weights=request.weights, token=token, split="train", **options
    )["store"]


def test_stores_of_one_pass_are_byte_for_byte_those_of_a_pass_each(requests, tmp_path):
    options = {"limit": 150, "views": 1}
    told = extract_all(requests, "digits", stores=tmp_path / "both", split="train", **options)
    pairs = [(requests[0], "cls"), (requests[0], "cls+mean"), (requests[1], None)]
    singles = [alone(request, token, tmp_path / "each", **options) for request, token in pairs]
    together = [each["store"] for each in told["stores"]]
    assert [Path(path).name for path in together] == [Path(path).name for path in singles]
    assert [each["width"] for each in told["stores"]] == [64, 128, 64]
    for one, both in zip(singles, together, strict=True):
        assert files_of(one) == files_of(both)
        assert verify_store(both) == []


def test_every_image_is_decoded_once_and_the_first_store_is_the_latest(requests, tmp_path, monkeypatch):
    from cspipe.extract import hashing

    decoded, decode = Counter(), hashing.decode
    monkeypatch.setattr(hashing, "decode", lambda source: decoded.update(["image"]) or decode(source))
    told = extract_all(requests, "digits", stores=tmp_path, split="test", limit=100, views=2)
    assert decoded == {"image": 100}
    assert told["store"] == told["stores"][0]["store"] == str(latest_store(tmp_path))
    assert told["images_per_second"] > 0 and set(told["seconds_by_stage"]) == {"decode", "forward", "write"}
    assert all(seconds > 0 for seconds in told["seconds_by_stage"].values())
    again = extract_all(requests, "digits", stores=tmp_path, split="test", limit=100, views=2)
    assert again["images_per_second"] is None


def test_a_store_that_is_ahead_of_the_others_is_left_alone(requests, tmp_path):
    alone(requests[0], "cls", tmp_path, limit=90)
    told = extract_all(requests, "digits", stores=tmp_path, split="train", limit=90)
    assert [each["splits"]["train"]["computed"] for each in told["stores"]] == [0, 90, 90]
    assert [len(open_store(each["store"])["train"]) for each in told["stores"]] == [90, 90, 90]


def test_a_bad_image_is_flagged_in_every_store(requests, tmp_path):
    from PIL import Image

    for number in range(40):
        path = tmp_path / "pets" / ("cat" if number % 2 else "dog") / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20), (number, 3 * number, 5 * number)).save(path)
    (tmp_path / "pets/cat/07.png").write_bytes(b"no picture")
    told = extract_all(requests, str(tmp_path / "pets"), stores=tmp_path / "stores")
    assert [[bad["path"] for bad in each["bad_images"]] for each in told["stores"]] == [["cat/07.png"]] * 3
    assert all(np.isfinite(open_store(each["store"])["train"].embedding()).all() for each in told["stores"])
    with pytest.raises(BadImageError, match=r"cat/07\.png cannot be used"):
        extract_all(requests, str(tmp_path / "pets"), stores=tmp_path / "strict", strict=True)


def test_workers_dealt_out_to_two_devices_give_the_same_bytes(requests, tmp_path, monkeypatch):
    monkeypatch.setattr("cspipe.extract.run.worker_count", lambda lanes: 4)
    one = extract_all(requests, "digits", stores=tmp_path / "one", split="test")
    two = extract_all(requests, "digits", stores=tmp_path / "two", split="test", devices=["cpu", "cpu"])
    for first, second in zip(one["stores"], two["stores"], strict=True):
        assert files_of(first["store"]) == files_of(second["store"])


def test_both_devices_are_used(tiny, tiny_weights, tmp_path, monkeypatch):
    from cspipe.extract import parallel

    used, embed = set(), parallel.embed
    monkeypatch.setattr(parallel, "embed", lambda lane, seat: used.add(id(lane)) or embed(lane, seat))
    monkeypatch.setattr("cspipe.extract.run.worker_count", lambda lanes: 2)
    extract_all([Request(tiny, weights=tiny_weights)], "digits", stores=tmp_path, devices=["cpu", "cpu"])
    assert len(used) == 2


def test_the_same_token_twice_or_one_that_there_is_not_is_refused(tiny, tiny_weights, tmp_path):
    with pytest.raises(SettingError, match="each token of tiny is stored once; got cls, cls"):
        extract_all([Request(tiny, ("cls", None), tiny_weights)], "digits", stores=tmp_path)
    with pytest.raises(UnknownNameError, match="did you mean 'mean-patch'"):
        extract_all([Request(tiny, ("cls", "meanpatch"), tiny_weights)], "digits", stores=tmp_path)
    assert not list(tmp_path.iterdir())


def settings(**changes):
    """A configuration with these changes of [extract]."""
    return override(Config(), {f"extract.{name}": value for name, value in changes.items()})


def test_names_tokens_and_weights_are_separated_by_commas():
    told = requests_of(settings(backbone="lite0, dinov2-s", token="cls,cls+mean", weights=",w.pth"))
    assert [request.backbone for request in told] == ["lite0", "dinov2-s"]
    assert told[0].tokens == told[1].tokens == ("cls", "cls+mean")
    assert [request.weights for request in told] == [None, Path("w.pth")]
    (one,) = requests_of(settings(backbone="lite0", weights="odd,name.pth"))
    assert one.weights == Path("odd,name.pth")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"backbone": "lite0,dinov2-s", "weights": "w.pth"}, "2 backbones and 1 files of weights"),
        ({"backbone": "lite0,dinov2-s", "revision": "main"}, "--revision belongs to one backbone"),
    ],
)
def test_options_that_do_not_fit_several_backbones_are_refused(changes, says):
    with pytest.raises(SettingError, match=says):
        requests_of(settings(**changes))


def test_the_command_line_tells_of_every_store(tmp_path, capsys):
    command = ["extract", "lite0,timm:test_vit", "digits", "--image-px", "32", "--limit", "8", "--token", "cls"]
    with pytest.raises(SystemExit) as end:
        main([*command, "--stores", str(tmp_path), "--quiet", "--json"])
    assert end.value.code == 1
    assert "token of lite0" in capsys.readouterr().err
    command = ["extract", "lite0,lite0", "digits", "--image-px", "32", "--limit", "8"]
    with pytest.raises(SystemExit) as end:
        main([*command, "--stores", str(tmp_path), "--quiet", "--json"])
    assert end.value.code == 1
    assert "lite0 was named twice" in capsys.readouterr().err
    with pytest.raises(SystemExit) as end:
        main(["extract", "lite0", "digits", "--image-px", "32", "--limit", "8", "--stores", str(tmp_path), "--json"])
    assert not end.value.code
    assert json.loads(capsys.readouterr().out)["token"] == "pooled"


def test_the_probe_image_shows_the_preprocessing(tiny, tiny_weights, tmp_path):
    from PIL import Image

    from cspipe.extract.backbones import load_backbone
    from cspipe.store.probe import MOST_APART, apart

    backbone = load_backbone(tiny, weights=tiny_weights)
    kept = probe(make_lane(backbone, torch.device("cpu"), "fp16"))
    assert kept.shape == (64,)
    assert np.array_equal(kept, probe(make_lane(backbone, torch.device("cpu"), "fp16")))

    def moved(**changes):
        return apart(kept, probe(make_lane(replace(backbone, **changes), torch.device("cpu"), "fp16")))

    squashed = moved(geometry=lambda image: image.resize((32, 32), Image.Resampling.NEAREST))
    twice = moved(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    assert min(squashed, twice) > MOST_APART
    assert apart(kept, kept.astype(np.float16)) < MOST_APART
    assert probe_image().size == (96, 64)


def test_a_store_refuses_a_backbone_that_gives_other_tokens_than_when_it_was_begun(
    tiny, tiny_weights, tmp_path, monkeypatch
):
    first = extract(tiny, "digits", stores=tmp_path, weights=tiny_weights, limit=10)
    before = files_of(first["store"])
    monkeypatch.setattr("cspipe.extract.targets.probe", lambda lane: probe(lane)[::-1])
    with pytest.raises(MismatchError, match="another token for the probe image"):
        extract(tiny, "digits", stores=tmp_path, weights=tiny_weights, limit=20)
    assert files_of(first["store"]) == before


def test_a_store_of_an_earlier_version_gets_its_probe(tiny, tiny_weights, tmp_path):
    from cspipe.store.meta import read_group, write_group

    path = Path(extract(tiny, "digits", stores=tmp_path, weights=tiny_weights, limit=10)["store"])
    root = read_group(path)
    told = root.pop("probe")
    write_group(path, root)
    extract(tiny, "digits", stores=tmp_path, weights=tiny_weights, limit=10)
    assert read_group(path)["probe"] == told
