"""CLIP and SigLIP towers: activation, tokens and layout as open_clip itself has them."""

from dataclasses import replace

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from cspipe.extract.backbones import BACKBONES, load_backbone, load_tokens, resolve_spec
from cspipe.extract.open_clip_models import build
from cspipe.store.errors import MismatchError, SettingError, UnknownNameError

SIDE = 64
CONFIG = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": SIDE, "layers": 2, "width": 32, "head_width": 16, "patch_size": 32},
    "text_cfg": {"context_length": 4, "vocab_size": 9, "width": 8, "heads": 2, "layers": 1},
}


def tiny(name="clip-b32"):
    return replace(BACKBONES[name], options=CONFIG, image_px=SIDE, depth=2)


@pytest.fixture
def whole():
    """A whole random CLIP of open_clip's class, with the activation of OpenAI's."""
    torch.manual_seed(0)
    model = open_clip.CLIP(**CONFIG, quick_gelu=True).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.1)
    return model


@pytest.fixture
def weights(whole, tmp_path):
    """Its weights as OpenAI's conversions are published: fp16, the image tower under visual.*."""
    state = {key: value.half().contiguous() for key, value in whole.state_dict().items()}
    whole.load_state_dict({key: value.float() for key, value in state.items()})
    save_file(state, tmp_path / "open_clip_model.safetensors")
    return tmp_path / "open_clip_model.safetensors"


@pytest.fixture
def pixels():
    return torch.randn(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def test_openai_weights_run_with_quick_gelu_though_the_architectures_name_does_not_say_so(whole, weights, pixels):
    openai = load_backbone(tiny(), weights=weights, token="projected")
    laion = load_backbone(tiny("clip-b32-laion"), weights=weights, token="projected")
    with torch.inference_mode():
        want = whole.encode_image(pixels)
        torch.testing.assert_close(openai.model(pixels), want, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(laion.model(pixels), want, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("name", "quick"), [("clip-b32", True), ("clip-l14", True), ("clip-b16-laion", False)])
def test_the_activation_of_every_clip_is_that_of_its_training(name, quick):
    with torch.device("meta"):
        tower = build(BACKBONES[name], 224)
    assert {type(block.mlp.gelu).__name__ for block in tower.transformer.resblocks} == {
        "QuickGELU" if quick else "GELU"
    }


def test_the_class_token_is_normed_and_its_projection_is_clips_image_embedding(whole, weights, pixels):
    names = ["cls", "projected", "mean-patch", "block-1", "block-2"]
    reader, _ = load_tokens(tiny(), tokens=names, weights=weights)
    visual = whole.visual
    with torch.inference_mode():
        found = reader(pixels)
        after_one = visual.transformer.resblocks[0](visual._embeds(pixels))
        sequence = visual.ln_post(visual.transformer.resblocks[1](after_one))
        torch.testing.assert_close(found["cls"], sequence[:, 0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found["mean-patch"], sequence[:, 1:].mean(1), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found["block-1"], visual.ln_post(after_one)[:, 0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found["projected"], found["cls"] @ visual.proj, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found["projected"], whole.encode_image(pixels), rtol=1e-4, atol=1e-5)


def test_another_side_resamples_position_embeddings_as_open_clip_does(whole, weights):
    side = 2 * SIDE
    bigger = open_clip.CLIP(**CONFIG | {"vision_cfg": CONFIG["vision_cfg"] | {"image_size": side}}, quick_gelu=True)
    state = {key: value.float() for key, value in load_file(weights).items()}
    open_clip.model.resize_pos_embed(state, bigger)
    bigger.load_state_dict(state)
    backbone = load_backbone(tiny(), weights=weights, image_px=side, token="projected")
    pixels = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        torch.testing.assert_close(backbone.model(pixels), bigger.eval().encode_image(pixels), rtol=1e-4, atol=1e-5)


def test_siglip_gives_the_token_of_its_attention_pooling(tmp_path):
    vision = {"timm_model_name": "test_vit2", "timm_pool": "map", "timm_proj": "none", "image_size": 32}
    config = CONFIG | {"vision_cfg": vision, "embed_dim": 64}
    torch.manual_seed(0)
    whole = open_clip.CustomTextCLIP(**config).eval()
    save_file(whole.state_dict(), tmp_path / "open_clip_model.safetensors")
    spec = replace(BACKBONES["siglip"], options=config, image_px=160)
    backbone = load_backbone(spec, weights=tmp_path / "open_clip_model.safetensors")
    pixels = torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        torch.testing.assert_close(backbone.model(pixels), whole.encode_image(pixels))
    assert backbone.token == "pooled" and backbone.mean == (0.5, 0.5, 0.5)


def test_a_torchscript_archive_is_refused_unread_with_the_name_of_its_conversion(tmp_path):
    program = torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2))
    program.save(str(tmp_path / "ViT-B-32.pt"))
    with pytest.raises(MismatchError, match=r"TorchScript.*timm/vit_base_patch32_clip_224.openai"):
        load_backbone("clip-b32", weights=tmp_path / "ViT-B-32.pt")


def test_weights_of_another_clip_are_refused_naming_keys_and_shapes(weights):
    with pytest.raises(MismatchError, match=r"clip-b16 \(ViT-B-16\): .*missing transformer.resblocks.2"):
        load_backbone("clip-b16", weights=weights)
    narrow = replace(tiny(), options=CONFIG | {"vision_cfg": CONFIG["vision_cfg"] | {"mlp_ratio": 2.0}})
    with pytest.raises(MismatchError, match=r"mlp.c_fc.weight is \(128, 32\), not \(64, 32\)"):
        load_backbone(narrow, weights=weights)


def test_any_pair_of_open_clip_is_a_name_with_its_repository_and_side():
    spec = resolve_spec("open_clip:ViT-B-16-SigLIP-384/webli")
    assert (spec.hub_repo, spec.image_px, spec.hub_files[0]) == (
        "timm/ViT-B-16-SigLIP-384", 384, "open_clip_model.safetensors"
    )  # fmt: skip
    assert resolve_spec("open_clip:ViT-B-32/openai").hub_repo == BACKBONES["clip-b32"].hub_repo
    with pytest.raises(UnknownNameError, match="open_clip architecture 'ViT-B-33'"):
        resolve_spec("open_clip:ViT-B-33/openai")
    with pytest.raises(UnknownNameError, match="tag of ViT-B-32 'opnai': did you mean 'openai'"):
        resolve_spec("open_clip:ViT-B-32/opnai")


def test_a_pair_that_is_registered_too_gives_the_same_token(weights, pixels):
    pair = replace(resolve_spec("open_clip:ViT-B-32/openai"), options=CONFIG, image_px=SIDE)
    ours, theirs = load_backbone(tiny(), weights=weights), load_backbone(pair, weights=weights)
    assert theirs.token == "cls" and theirs.transform_words == ours.transform_words
    with torch.inference_mode():
        assert torch.equal(ours.model(pixels), theirs.model(pixels))


def test_a_side_that_leaves_a_strip_outside_the_patches_is_refused(weights):
    with pytest.raises(SettingError, match="multiples of 32 px"):
        load_backbone(tiny(), weights=weights, image_px=100)
    pair = replace(resolve_spec("open_clip:ViT-B-32/openai"), options=CONFIG)
    with pytest.raises(SettingError, match="multiples of 32 px; 100 was given: use --image-px 96 or 128"):
        load_backbone(pair, weights=weights, image_px=100)


@pytest.mark.parametrize("name", ["clip-b32", "clip-l14-laion", "siglip"])
@pytest.mark.parametrize("size", [(50, 37), (37, 50), (224, 224), (500, 301), (1, 9)])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_pixels_equal_open_clips_own_preprocessing(name, size, mode):
    from cspipe.extract.images import decode, normalise, to_uint8
    from cspipe.extract.open_clip_models import preprocessing

    spec = BACKBONES[name]
    tag = open_clip.get_pretrained_cfg(spec.architecture, spec.tag)
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
    theirs = open_clip.image_transform(224, is_train=False, mean=tag["mean"], std=tag["std"],
                                       resize_mode=tag["resize_mode"], interpolation=tag["interpolation"])  # fmt: skip
    ours = preprocessing(spec, 224)
    pixels = torch.from_numpy(to_uint8(decode(np.asarray(image)), ours.geometry).copy())[None]
    assert torch.equal(normalise(pixels, ours.mean, ours.std)[0], theirs(image))
