"""Vision models of transformers: tokens, preprocessing and what is never run, on tiny random models in folders."""

import json

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file

from cspipe.extract.backbones import load_backbone, load_tokens, resolve_spec
from cspipe.extract.images import decode, normalise, to_uint8
from cspipe.store.errors import MismatchError, MissingDataError, SettingError, UnknownNameError

SMALL = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip
TEXT = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
DINO = {key: SMALL[key] for key in SMALL if key != "intermediate_size"}


def model_of(kind):
    """A tiny random model of one class of transformers and an image processor as its kind is published with."""
    t = transformers
    cropped = {"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}}
    plain = {"size": {"height": 32, "width": 32}}
    makers = {
        "vit": lambda: (t.ViTModel(t.ViTConfig(**SMALL)), t.ViTImageProcessor(**plain)),
        "dinov2": lambda: (t.Dinov2Model(t.Dinov2Config(**DINO)), t.BitImageProcessor(**cropped)),
        "registers": lambda: (
            t.Dinov2WithRegistersModel(t.Dinov2WithRegistersConfig(**DINO)), t.BitImageProcessor(**cropped),
        ),
        "clip": lambda: (
            t.CLIPModel(t.CLIPConfig(vision_config=SMALL, text_config=TEXT)), t.CLIPImageProcessor(**cropped),
        ),
        "siglip": lambda: (t.SiglipVisionModel(t.SiglipVisionConfig(**SMALL)), t.SiglipImageProcessor(**plain)),
        "convnext": lambda: (
            t.ConvNextModel(t.ConvNextConfig(hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1])),
            t.ViTImageProcessor(**plain),
        ),
    }  # fmt: skip
    torch.manual_seed(0)
    model, processor = makers[kind]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.05)
    return model.eval(), processor


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    """A function from a kind to a folder as on the hub."""
    known = {}

    def make(kind):
        if kind not in known:
            model, processor = model_of(kind)
            known[kind] = tmp_path_factory.mktemp(kind) / "model"
            model.save_pretrained(known[kind])
            processor.save_pretrained(known[kind])
        return known[kind]

    return make


def picture(size, mode, seed=0):
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def seen_by(backbone, image):
    """What our preprocessing hands to the network, ``(1, 3, H, W)``."""
    pixels = torch.from_numpy(to_uint8(decode(np.asarray(image)), backbone.geometry).copy())[None]
    return normalise(pixels, backbone.mean, backbone.std)


@pytest.mark.parametrize("kind", ["vit", "dinov2", "clip", "siglip", "convnext"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_pixels_and_tokens_equal_the_models_own_pipeline(folder_of, kind, mode):
    folder = folder_of(kind)
    backbone = load_backbone(f"hf:{folder}")
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    network = getattr(model, "vision_model", model)
    for size in ((50, 37), (37, 51), (32, 32), (9, 14), (301, 200)):
        image = picture(size, mode)
        want = processor(images=image.convert("RGB"), return_tensors="pt")["pixel_values"]
        ours = seen_by(backbone, image)
        torch.testing.assert_close(ours, want, rtol=0, atol=1e-6)
        with torch.inference_mode():
            told = network(pixel_values=want)
            token = told.last_hidden_state[:, 0] if kind in ("vit", "dinov2") else told.pooler_output.flatten(1)
            torch.testing.assert_close(backbone.model(ours), token, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "token", "tokens"),
    [
        ("vit", "cls", ["cls", "mean-patch", "cls+mean", "pooled", "block-1", "block-2"]),
        ("registers", "cls", ["cls", "mean-patch", "cls+mean", "pooled", "block-1", "block-2"]),
        ("clip", "cls", ["cls", "mean-patch", "cls+mean", "pooled", "block-1", "block-2"]),
        ("siglip", "pooled", ["pooled", "mean-patch", "block-1", "block-2"]),
        ("convnext", "pooled", ["pooled", "mean-patch"]),
    ],
)
def test_every_token_comes_out_of_one_pass_at_its_width(folder_of, kind, token, tokens):
    reader, backbones = load_tokens(f"hf:{folder_of(kind)}", tokens=[None, *tokens])
    pixels = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        found, single = reader(pixels), reader(pixels[2:3])
        for backbone in backbones:
            assert found[backbone.token].shape == (5, backbone.width)
            assert torch.equal(found[backbone.token], reader(pixels)[backbone.token])
            torch.testing.assert_close(single[backbone.token][0], found[backbone.token][2], rtol=1e-4, atol=1e-5)
    assert backbones[0].token == token and backbones[0].image_px == 32
    with pytest.raises(UnknownNameError, match=r"token of hf:.*spatial"):
        load_backbone(f"hf:{folder_of(kind)}", token="spatial")


@pytest.mark.parametrize(("kind", "prefix"), [("vit", 1), ("registers", 5), ("clip", 1)])
def test_registers_are_no_patches_and_blocks_go_through_the_last_norm(folder_of, kind, prefix):
    names = ["cls", "mean-patch", "block-1", "block-2"]
    reader, (backbone, *_) = load_tokens(f"hf:{folder_of(kind)}", tokens=names)
    network = backbone.model.network
    layers = next(
        module for module in network.modules() if isinstance(module, torch.nn.ModuleList) and len(module) == 2
    )
    norm = getattr(network, "layernorm", None) or network.post_layernorm
    pixels, outputs = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)), []
    hooks = [layer.register_forward_hook(lambda m, i, out: outputs.append(out)) for layer in layers]
    with torch.inference_mode():
        network(pixel_values=pixels)
        first, last = (norm(out[0] if isinstance(out, tuple) else out) for out in outputs)
        for hook in hooks:
            hook.remove()
        found = reader(pixels)
    torch.testing.assert_close(found["block-1"], first[:, 0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["block-2"], last[:, 0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["cls"], last[:, 0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["mean-patch"], last[:, prefix:].mean(1), rtol=1e-4, atol=1e-5)


def test_another_side_keeps_the_proportion_of_resize_to_crop(folder_of):
    backbone = load_backbone(f"hf:{folder_of('dinov2')}", image_px=64)
    processor = transformers.AutoImageProcessor.from_pretrained(
        folder_of("dinov2"), size={"shortest_edge": 80}, crop_size={"height": 64, "width": 64}
    )
    image = picture((150, 101), "RGB")
    want = processor(images=image, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(seen_by(backbone, image), want, rtol=0, atol=1e-6)
    with torch.inference_mode():
        assert backbone.model(want).shape == (1, 32)
    with pytest.raises(SettingError, match="multiples of 8 px; 50 was given: use --image-px 48 or 56"):
        load_backbone(f"hf:{folder_of('dinov2')}", image_px=50)


def test_the_hash_follows_weights_and_configuration(folder_of, tmp_path):
    source = folder_of("vit")
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_bytes((source / name).read_bytes())
    state = load_file(source / "model.safetensors")
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    first = load_backbone(f"hf:{tmp_path}").weights_sha256
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"hidden_act": "relu"}))
    second = load_backbone(f"hf:{tmp_path}").weights_sha256
    key = next(key for key in state if key.endswith("bias"))
    save_file(state | {key: state[key] + 1}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert len({first, second, load_backbone(f"hf:{tmp_path}").weights_sha256}) == 3
    save_file({k: v for k, v in state.items() if k != key}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(MismatchError, match=r"lacks weights of hf:.*missing .*bias"):
        load_backbone(f"hf:{tmp_path}")


def test_a_folder_without_safetensors_is_refused_and_its_pickle_not_read(folder_of, tmp_path):
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_bytes((folder_of("vit") / name).read_bytes())
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(MissingDataError, match=r"holds no model\.safetensors"):
        load_backbone(f"hf:{tmp_path}")
    with pytest.raises(SettingError, match="--weights is not read for hf:"):
        load_backbone(f"hf:{tmp_path}", weights=tmp_path / "pytorch_model.bin")


CODE = """
from pathlib import Path
Path({marker!r}).touch()
from transformers import ViTConfig as Config, ViTModel as Model
class TinyConfig(Config):
    model_type = "tiny-of-mine"
class TinyModel(Model):
    config_class = TinyConfig
"""


@pytest.fixture
def remote(folder_of, tmp_path, monkeypatch):
    """A repository with Python of its own behind the hub's client; returns the commits asked for and a marker."""
    import huggingface_hub

    commit, marker = "a" * 40, tmp_path / "ran"
    snapshot = tmp_path / "snapshots" / commit
    snapshot.mkdir(parents=True)
    for file in folder_of("vit").iterdir():
        (snapshot / file.name).write_bytes(file.read_bytes())
    save_file(model_of("vit")[0].state_dict(), snapshot / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((snapshot / "config.json").read_text()) | {
        "model_type": "tiny-of-mine",
        "auto_map": {"AutoConfig": "mine.TinyConfig", "AutoModel": "mine.TinyModel"},
    }
    (snapshot / "config.json").write_text(json.dumps(config))
    (snapshot / "mine.py").write_text(CODE.format(marker=str(marker)))
    asked = []

    class Answer:
        commit_hash = commit

    def download(repo, *, revision=None, allow_patterns=(), local_files_only=False):
        asked.append((repo, revision, "*.py" in allow_patterns))
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda *args, **kwargs: Answer)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    return asked, marker, commit


def test_python_of_a_repository_runs_only_when_allowed_and_pinned(remote):
    asked, marker, commit = remote
    with pytest.raises(MismatchError, match="transformers cannot build hf:someone/tiny"):
        load_backbone("hf:someone/tiny")
    assert asked == [("someone/tiny", commit, False)] and not marker.exists()
    spec = resolve_spec("hf:someone/tiny", trust_remote_code=True)
    for revision in (None, "main", "a" * 39):
        with pytest.raises(SettingError, match="40 hexadecimal digits, with --revision"):
            load_backbone(spec, revision=revision)
    assert not marker.exists()
    backbone = load_backbone(spec, revision=commit)
    assert marker.exists() and asked[-1] == ("someone/tiny", commit, True)
    assert (backbone.revision, backbone.weights_source) == (commit, "huggingface.co/someone/tiny")


def test_remote_code_is_refused_where_there_is_none_to_allow(folder_of):
    with pytest.raises(SettingError, match="dinov2-s needs no code of others"):
        resolve_spec("dinov2-s", trust_remote_code=True)
    with pytest.raises(SettingError, match="is for repositories of the hub"):
        load_backbone(resolve_spec(f"hf:{folder_of('vit')}", trust_remote_code=True), revision="a" * 40)


def test_a_repository_that_cannot_be_reached_is_told_with_the_way_out(monkeypatch):
    import huggingface_hub

    def refuse(*args, **kwargs):
        raise ConnectionError("no route to host")

    def no_cache(*args, **kwargs):
        raise huggingface_hub.errors.LocalEntryNotFoundError("not cached")

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", refuse)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", no_cache)
    with pytest.raises(MissingDataError, match=r"huggingface.co/someone/tiny .*no route to host.*hf:FOLDER"):
        load_backbone("hf:someone/tiny")


def test_what_transformers_cannot_read_as_a_model_is_told(tmp_path):
    for name in ("config.json", "preprocessor_config.json", "model.safetensors"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(MismatchError, match="transformers cannot build hf:"):
        load_backbone(f"hf:{tmp_path}")
