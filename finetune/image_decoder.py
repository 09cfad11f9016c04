"""The image in the token's place: a decoder from content and style to pixels, for `finetune.target = "image"`.

It takes the place of the head's own decoder, and a discriminator of images that of tokens, while training lasts; the
head that is kept has its own back, which no longer belong to the moved tokens and which no prediction asks for.

Legend: `X` rows of a batch (labelled, then unlabelled), `L` labelled rows, `I` numbers of an image, channel by channel.
"""

import torch
from torch import Tensor, nn

from cspipe.finetune.images import Ints, RowImages
from cspipe.finetune.settings import FinetuneSettings
from cspipe.headtrain.model import ContentStyle, StackedLinear, discriminator
from cspipe.headtrain.settings import HeadSettings
from cspipe.store.errors import SettingError

HIDDEN = 512
MOST_PX = 64
"""Side of the largest image: the last layer grows with the area."""


def rebuilds_image(settings: FinetuneSettings, head: HeadSettings) -> bool:
    """Whether pixels are rebuilt: the settings ask for them, and the objective rebuilds anything.

    Raises:
        SettingError: they ask for pixels and for a probe, which looks at none.
    """
    if settings.target != "image" or not (head.lambda_y or head.lambda_yy):
        return False
    if settings.probe_steps:
        raise SettingError(
            f"target = 'image' rebuilds images, and the {settings.probe_steps} steps of the probe look at none: set "
            "finetune.probe_steps to 0."
        )
    return True


def channels_of(images: RowImages, rows: Ints) -> int:
    """1 where these rows' three channels are equal, as in grey images; else 3."""
    pixels_L3HW = images.batch(rows)
    return 1 if bool((pixels_L3HW == pixels_L3HW[:, :1]).all()) else 3


def image_rows(pixels_X3HW: Tensor, channels: int, like: Tensor) -> Tensor:
    """uint8 pixels as rows in [0, 1] `(1, X, I)` of the first `channels` channels, of the type and device of `like`."""
    return (pixels_X3HW[:, :channels].to(like) / 255).flatten(1)[None]


def put_image_decoder(stack: ContentStyle, image_px: int, channels: int, seed: int) -> None:
    """Gives a stack of one the decoder of images, and the discriminator of images where it has one of tokens.

    Args:
        stack: a head, changed in place.
        image_px: side of the images, pixels.
        channels: 1 or 3.
        seed: of the first weights.

    Raises:
        SettingError: the images are too large.
    """
    if image_px > MOST_PX:
        raise SettingError(
            f"target = 'image' rebuilds images of at most {MOST_PX} px; these have {image_px}. Extract with a smaller "
            "--image-px, or set finetune.target to 'cached'."
        )
    like, drawn = next(stack.parameters()), [torch.Generator().manual_seed(seed)]
    numbers = channels * image_px**2
    stack.decoder = nn.Sequential(
        StackedLinear(stack.classes + stack.style, HIDDEN, drawn), nn.ReLU(), StackedLinear(HIDDEN, numbers, drawn)
    ).to(like)
    if "token" in stack.critics:
        stack.critics["token"] = discriminator(numbers, stack.critic_widths["token"], drawn).to(like)


def put_back(stack: ContentStyle, first: ContentStyle) -> None:
    """Gives a trained stack the decoder and the discriminator of tokens that it had at first."""
    stack.decoder = first.decoder
    if "token" in stack.critics:
        stack.critics["token"] = first.critics["token"]
