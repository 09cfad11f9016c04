"""Which parameters learn, and the backbone under the head."""

import pytest
import timm
import torch

from cspipe.finetune.model import Joined, block_numbers, unfreeze
from cspipe.headtrain.model import ContentStyle
from cspipe.headtrain.projection import fit_projection
from cspipe.store.errors import SettingError

ARCHITECTURES = {"test_vit": 6, "tf_efficientnet_lite0": 16}


@pytest.fixture(params=ARCHITECTURES)
def architecture(request) -> str:
    return request.param


@pytest.fixture
def backbone(architecture):
    with torch.device("meta"):  # shapes alone: nothing is computed with it
        return timm.create_model(architecture, pretrained=False, num_classes=0)


def learning(backbone) -> set[str]:
    return {name for name, parameter in backbone.named_parameters() if parameter.requires_grad}


def in_blocks(backbone, architecture: str, last: int) -> set[str]:
    """Parameters of the last blocks by the model's own list of them, and of what follows."""
    if architecture == "test_vit":
        kept = [f"blocks.{number}." for number in range(len(backbone.blocks) - last, len(backbone.blocks))]
        after = ("norm.",)
    else:
        every = [f"blocks.{stage}.{n}." for stage, blocks in enumerate(backbone.blocks) for n in range(len(blocks))]
        kept, after = every[len(every) - last :], ("conv_head.", "bn2.")
    return {name for name, _ in backbone.named_parameters() if name.startswith((*kept, *after))}


@pytest.mark.parametrize("blocks", [1, 2, 5])
def test_exactly_the_last_blocks_and_what_follows_them_learn(backbone, architecture, blocks):
    count = unfreeze(backbone, blocks)
    assert learning(backbone) == in_blocks(backbone, architecture, blocks)
    assert count == sum(p.numel() for name, p in backbone.named_parameters() if name in learning(backbone))


def test_all_blocks_are_all_but_the_stem(backbone, architecture):
    unfreeze(backbone, ARCHITECTURES[architecture])
    stem = {name for name, _ in backbone.named_parameters()} - learning(backbone)
    expected = {
        "test_vit": {"cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"},
        "tf_efficientnet_lite0": {"conv_stem.weight", "bn1.weight", "bn1.bias"},
    }
    assert stem == expected[architecture]


def test_without_a_number_everything_learns_even_after_a_narrower_choice(backbone):
    unfreeze(backbone, 1)
    count = unfreeze(backbone, None)
    assert learning(backbone) == {name for name, _ in backbone.named_parameters()}
    assert count == sum(parameter.numel() for parameter in backbone.parameters())


def test_more_blocks_than_there_are_is_refused_with_their_number(backbone, architecture):
    there = ARCHITECTURES[architecture]
    with pytest.raises(SettingError, match=f"blocks {there + 1} is more than the {there} blocks .* use --unfreeze"):
        unfreeze(backbone, there + 1)


def test_a_head_that_timm_groups_apart_counts_as_part_of_the_last_block():
    with torch.device("meta"):
        siglip = timm.create_model("vit_base_patch16_siglip_224", pretrained=False, num_classes=0)
    number = block_numbers(siglip)
    assert number["blocks.11.mlp.fc1.weight"] == number["attn_pool.q.weight"] == number["norm.weight"] == 12
    assert number["blocks.0.mlp.fc1.weight"] == 1


def test_a_model_that_does_not_tell_its_blocks_apart_says_what_to_do():
    with pytest.raises(SettingError, match="does not tell its blocks apart: use --unfreeze to train all of it"):
        unfreeze(torch.nn.Linear(2, 2), 1)


@pytest.fixture
def joined() -> Joined:
    """A random ViT under a random head."""
    torch.manual_seed(0)
    backbone = timm.create_model("test_vit", pretrained=False, num_classes=0, img_size=32)
    stack = ContentStyle(width=5, classes=3, style=2, hidden=8, critics={}, seeds=[0])
    generator = torch.Generator().manual_seed(0)
    projection = fit_projection(torch.randn(50, 64, generator=generator), 5)
    return Joined(backbone, stack, projection)


def test_the_joined_model_is_backbone_then_projection_then_head(joined):
    pixels = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    joined.eval()
    with torch.no_grad():
        token = joined.backbone(pixels)
        expected = joined.stack.encode(joined.projection(token)[None])[0][0].softmax(-1)
        assert torch.equal(joined.tokens(pixels), token)
        assert torch.equal(joined(pixels), expected)
    assert expected.shape == (4, 3)


def test_the_gradient_reaches_the_backbones_first_layer_through_the_head(joined):
    joined.learn()
    joined(torch.randn(4, 3, 32, 32))[:, 0].sum().backward()
    assert joined.backbone.patch_embed.proj.weight.grad.abs().sum() > 0


def test_while_learning_the_backbone_stays_in_evaluation_mode(joined):
    joined.eval()
    joined.learn()
    assert joined.stack.training
    assert not any(module.training for module in joined.backbone.modules())
