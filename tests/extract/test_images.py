"""The backbone's own preprocessing: equal to timm's full transform, whatever the image."""

import io
import struct
import zlib

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config

from cspipe.extract.backbones import load_backbone
from cspipe.extract.images import BadImageError, decode, normalise, to_uint8


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(height: int, width: int, channels: int = 3) -> np.ndarray:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(height * width).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture(scope="module")
def lite0():
    return load_backbone("lite0")


@pytest.fixture(scope="module")
def full_transform(lite0):
    """timm's own transform, from image to normalised tensor."""
    model = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=0)
    config = resolve_model_data_config(model, args={"input_size": (3, 112, 112)})
    return create_transform(**(config | {"mean": lite0.mean, "std": lite0.std}), is_training=False)


@pytest.mark.parametrize("size", [(28, 28), (8, 8), (112, 112), (300, 200), (131, 517)])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "CMYK", "LA", "1"])
def test_an_image_of_any_size_and_mode_equals_the_librarys_full_transform(lite0, full_transform, size, mode):
    image = Image.fromarray(pixels(*size)).convert(mode)
    kind = "JPEG" if mode == "CMYK" else "PNG"
    source = encoded(image, kind)
    batch = torch.from_numpy(to_uint8(decode(source), lite0.geometry).copy())[None]
    ours = normalise(batch, lite0.mean, lite0.std)[0]
    theirs = full_transform(Image.open(io.BytesIO(source)).convert("RGB"))
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("channels", [1, 3])
def test_an_array_equals_the_same_image_from_a_file(lite0, channels):
    array = pixels(28, 28, channels)
    from_file = to_uint8(decode(encoded(Image.fromarray(array))), lite0.geometry)
    assert np.array_equal(to_uint8(decode(array), lite0.geometry), from_file)


def test_a_grey_image_gives_three_equal_planes_and_the_pixels_of_its_rgb_version(lite0):
    grey = Image.fromarray(pixels(50, 70, 1))
    planes = to_uint8(grey, lite0.geometry)
    assert planes.shape == (3, 112, 112)
    assert np.array_equal(planes, to_uint8(grey.convert("RGB"), lite0.geometry))


def test_a_photograph_that_lies_on_its_side_is_turned_upright():
    array = pixels(20, 30)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = decode(encoded(Image.fromarray(array), exif=exif))
    assert np.array_equal(np.asarray(turned), np.rot90(array, -1))


def test_sixteen_bit_grey_is_scaled_to_eight_bits():
    array = np.array([[0, 257 * 100, 65535]], np.uint16)
    assert np.asarray(decode(encoded(Image.fromarray(array)))).tolist() == [[0, 100, 255]]


def broken_png() -> bytes:
    """A PNG whose checksums are right and whose pixels are not all there."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 50, 50, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 60)[:-4]) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize(
    "source",
    [
        b"",
        b"no image at all",
        encoded(Image.fromarray(pixels(64, 64)), "JPEG")[:-200],
        encoded(Image.fromarray(pixels(64, 64)))[:300],
        broken_png(),
        np.zeros((4, 4), np.float32),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((0, 4), np.uint8),
        encoded(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF"),
    ],
)
def test_what_cannot_be_decoded_whole_is_a_bad_image_with_a_reason(source):
    with pytest.raises(BadImageError) as caught:
        decode(source)
    assert len(str(caught.value)) > 5
    assert "\n" not in str(caught.value)
