"""Names, sides and weights of backbones; what a wrong file or no network answers."""

import hashlib
import pickle
import time
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from cspipe.extract.backbones import BACKBONES, load_backbone
from cspipe.store.errors import MismatchError, MissingDataError, SettingError, UnknownNameError


def test_an_unknown_backbone_is_answered_with_the_nearest_name():
    with pytest.raises(UnknownNameError, match="did you mean 'dinov2-s'"):
        load_backbone("dinov2-x")


def test_the_registry_cannot_be_changed_and_names_every_licence():
    with pytest.raises(TypeError):
        BACKBONES["mine"] = BACKBONES["lite0"]  # type: ignore[index]
    assert all(name == spec.name and spec.licence for name, spec in BACKBONES.items())


def test_a_side_that_is_no_multiple_of_the_patch_is_refused_with_the_nearest_ones():
    with pytest.raises(SettingError, match=r"multiples of 14 px.*100 was given: use --image-px 98 or 112"):
        load_backbone("dinov2-s", image_px=100)
    with pytest.raises(SettingError, match="at least 32 px"):
        load_backbone("lite0", image_px=16)


def test_an_unknown_token_names_the_one_there_is():
    with pytest.raises(UnknownNameError, match=r"token of lite0.*pooled"):
        load_backbone("lite0", token="cls")


def test_lite0_needs_no_network_and_tells_its_hash_licence_and_transform():
    backbone = load_backbone("lite0")
    assert (backbone.width, backbone.image_px, backbone.token) == (1280, 112, "pooled")
    assert backbone.weights_sha256.startswith("57934424")
    assert backbone.licence == "Apache-2.0"
    assert "shorter side to 128 px, bicubic" in backbone.transform_words
    assert not backbone.model.training


def test_lite0_reads_the_same_weights_under_timms_names(tmp_path):
    shipped = load_backbone("lite0")
    file = tmp_path / "lite0.safetensors"
    classifier = {"classifier.weight": torch.zeros(1000, 1280), "classifier.bias": torch.zeros(1000)}
    save_file(shipped.model.state_dict() | classifier, file)
    again = load_backbone("lite0", weights=file)
    pairs = zip(shipped.model.state_dict().values(), again.model.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    assert again.weights_sha256 == hashlib.sha256(file.read_bytes()).hexdigest()


def test_weights_of_another_side_are_resampled(tiny, tiny_weights):
    backbone = load_backbone(tiny, weights=tiny_weights, image_px=64)
    with torch.inference_mode():
        assert backbone.model(torch.zeros(1, 3, 64, 64)).shape == (1, 64)


def test_half_precision_weights_run_in_fp32(tiny, tiny_weights, tmp_path):
    file = tmp_path / "half.safetensors"
    save_file({key: tensor.half() for key, tensor in load_file(tiny_weights).items()}, file)
    model = load_backbone(tiny, weights=file).model
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32}


def test_a_wrapped_training_checkpoint_is_read_without_running_code(tiny, tiny_weights, tmp_path):
    file = tmp_path / "wrapped.pth"
    state = {f"module.{key}": tensor for key, tensor in load_file(tiny_weights).items()}
    torch.save({"state_dict": state, "epoch": 3}, file)
    assert load_backbone(tiny, weights=file).width == 64


def test_weights_of_another_network_are_refused_naming_keys_and_backbone(tiny, tiny_weights, tmp_path):
    with pytest.raises(MismatchError, match=r"lite0 \(tf_efficientnet_lite0\): missing conv_stem.weight.*more"):
        load_backbone("lite0", weights=tiny_weights)
    state = load_file(tiny_weights)
    state["blocks.0.attn.qkv.weight"] = torch.zeros(7, 64)
    state["extra"] = state.pop("norm.bias")
    save_file(state, tmp_path / "other.safetensors")
    with pytest.raises(MismatchError, match=r"missing norm.bias; unexpected extra; .*qkv.weight is \(7, 64\)"):
        load_backbone(tiny, weights=tmp_path / "other.safetensors")


class Evil:
    """Would write a file when unpickled by a reader that runs code."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


def test_a_file_that_is_no_weights_is_refused_and_its_code_never_runs(tiny, tmp_path):
    contents = {
        "cut.safetensors": b"\x10\0\0",
        "noise.pth": b"noise",
        "evil.pth": pickle.dumps({"x": Evil(tmp_path / "ran")}, protocol=2),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(MismatchError, match=name):
            load_backbone(tiny, weights=tmp_path / name)
    torch.save(torch.zeros(3), tmp_path / "bare.pt")
    with pytest.raises(MismatchError, match=r"bare\.pt"):
        load_backbone(tiny, weights=tmp_path / "bare.pt")
    assert not (tmp_path / "ran").exists()


def test_a_file_that_is_not_there_or_of_another_kind_says_what_to_give(tiny, tmp_path):
    with pytest.raises(MissingDataError, match="--weights FILE"):
        load_backbone(tiny, weights=tmp_path / "none.safetensors")
    (tmp_path / "weights.npz").write_bytes(b"x")
    with pytest.raises(SettingError, match=r"\.safetensors"):
        load_backbone(tiny, weights=tmp_path / "weights.npz")
    with pytest.raises(MissingDataError, match="--weights FILE"):
        load_backbone(tiny)


def hub_is(monkeypatch, answer):
    """Put ``answer`` in the place of the one request to the hub, and an empty cache in that of the cache."""
    import huggingface_hub

    def no_cache(*args, **kwargs):
        raise huggingface_hub.errors.LocalEntryNotFoundError("not cached")

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", answer)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", no_cache)


def test_a_hub_that_cannot_be_reached_is_told_quickly_with_the_way_out(monkeypatch):
    def refuse(*args, **kwargs):
        raise ConnectionError("no route to host")

    hub_is(monkeypatch, refuse)
    with pytest.raises(MissingDataError, match=r"dinov2-s .*no route to host.*--weights FILE"):
        load_backbone("dinov2-s")


def test_a_hub_that_never_answers_is_given_up_within_seconds(monkeypatch):
    hub_is(monkeypatch, lambda *args, **kwargs: time.sleep(30))
    monkeypatch.setattr("cspipe.extract.weights.HUB_SECONDS", 0.2)
    begun = time.monotonic()
    with pytest.raises(MissingDataError, match=r"no answer within.*--weights FILE"):
        load_backbone("dinov2-s")
    assert time.monotonic() - begun < 5


def test_the_hubs_client_itself_does_not_retry_for_minutes(monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "hf_hub_url", lambda *args, **kwargs: "http://127.0.0.1:9/model")
    begun = time.monotonic()
    with pytest.raises(MissingDataError, match="--weights FILE"):
        load_backbone("dinov2-s", revision="no-such-revision-of-these-weights")
    assert time.monotonic() - begun < 10


def test_the_hubs_commit_is_recorded(monkeypatch, tmp_path, tiny, tiny_weights):
    import huggingface_hub

    class Answer:
        commit_hash = "abc123"

    def download(repo, name, revision=None, **kwargs):
        folder = tmp_path / "snapshots" / revision
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(tiny_weights.read_bytes())
        return str(folder / name)

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda *args, **kwargs: Answer)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    backbone = load_backbone(replace(tiny, hub_repo="some/repo"))
    assert (backbone.revision, backbone.weights_source) == ("abc123", "huggingface.co/some/repo")
