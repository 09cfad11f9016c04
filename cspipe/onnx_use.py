"""The example of an ONNX model's card: plain Python that prepares an image as the backbone's own library does."""

import re
from typing import Any

EXAMPLE = """```python
import json

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

config = json.load(open("config.json"))
side = config["image_px"]
image = ImageOps.exif_transpose(Image.open("image.png")).convert("RGB")
{geometry}
pixels = np.asarray(image).transpose(2, 0, 1)[None]  # uint8, (1, 3, height, width)
session = onnxruntime.InferenceSession("model.onnx")
(probability,) = session.run(["probabilities"], {{"pixels": pixels}})[0]
print(config["class_names"][probability.argmax()], probability.max())
```

The network takes uint8 pixels of exactly that side and normalises them itself. {told}"""

SCALED_AND_CUT = """scaled = [{shorter} * length // min(image.size) for length in image.size]
image = image.resize(scaled, Image.Resampling.{how})
left, top = (round((length - side) / 2) for length in image.size)
image = image.crop((left, top, left + side, top + side))  # the centre"""
SCALED = "image = image.resize((side, side), Image.Resampling.{how})"
HOW = r"(nearest|bilinear|bicubic|lanczos) on 8-bit pixels with antialias"


def use_onnx(config: dict[str, Any]) -> str:
    """How the network is used, in Markdown; the geometry is that of `transform`, the preprocessing in words.

    Args:
        config: content of the model's config.json.
    """
    side, words = config["image_px"], config["transform"]
    cut = re.search(rf"shorter side to (\d+) px, {HOW}; centre {side} x {side} px;", words)
    if cut:
        lines = SCALED_AND_CUT.format(shorter=cut[1], how=cut[2].upper())
        return EXAMPLE.format(geometry=lines, told="What comes before is `transform` in `config.json`.")
    scaled = re.search(rf"both sides to {side} x {side} px whatever the shape, {HOW};", words)
    if scaled:
        lines = SCALED.format(how=scaled[1].upper())
        return EXAMPLE.format(geometry=lines, told="What comes before is `transform` in `config.json`.")
    told = (
        "What comes before stands in words in `config.json` under `transform`: do that in place of the resizing above."
    )
    return EXAMPLE.format(geometry=SCALED.format(how="BICUBIC") + '  # see "transform"', told=told)
