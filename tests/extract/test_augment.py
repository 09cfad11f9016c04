"""What views look like: bounded, reproducible, filled at the borders; and how augmentations are named."""

import hashlib

import numpy as np
import pytest
from torchvision.transforms.v2 import functional as F

from cspipe.extract.augment import AUGMENTATIONS, draw_view, words_of
from cspipe.store.errors import SettingError, UnknownNameError

SIDE = 64
NAMES = [*AUGMENTATIONS, "affine+flips", "rotations+photometric"]


def sha(number):
    return hashlib.sha256(str(number).encode()).digest()


def photo(seed=0, height=SIDE, width=SIDE):
    """Smooth colours, as `(3, H, W)`."""
    coarse = np.random.default_rng(seed).integers(0, 256, (3, 8, 8), dtype=np.uint8)
    return np.ascontiguousarray(coarse.repeat(-(-height // 8), 1).repeat(-(-width // 8), 2)[:, :height, :width])


def square():
    """A white square in the middle of black, a quarter of the area."""
    pixels = np.zeros((3, SIDE, SIDE), np.uint8)
    pixels[:, SIDE // 4 : -SIDE // 4, SIDE // 4 : -SIDE // 4] = 255
    return pixels


def middle(pixels):
    """Centroid of the brightness, pixels from the middle of the image."""
    weight = pixels.sum(0, dtype=float)
    place = np.arange(SIDE) - (SIDE - 1) / 2
    return np.array([(weight.sum(0) * place).sum(), (weight.sum(1) * place).sum()]) / weight.sum()


@pytest.mark.parametrize("name", NAMES)
def test_a_view_is_known_by_name_hash_and_number_alone(name):
    views = [draw_view(name, photo(), sha(1), k) for k in range(3)]
    for k in (2, 0, 1):
        assert np.array_equal(draw_view(name, photo(), sha(1), k), views[k])
    drawn = {draw_view(name, photo(), sha(n), k).tobytes() for n in range(4) for k in range(4)}
    assert len(drawn) == (3 if name == "flips" else 16)


@pytest.mark.parametrize("name", NAMES)
def test_a_view_has_the_shape_of_its_image_which_stays_as_it_was(name):
    pixels = photo(height=48, width=32)
    before = pixels.copy()
    view = draw_view(name, pixels, sha(0), 0)
    assert view.shape == pixels.shape and view.dtype == np.uint8
    assert np.array_equal(pixels, before)
    assert not np.array_equal(view, pixels)


@pytest.mark.parametrize("name", NAMES)
def test_a_grey_image_of_one_plane_gives_the_view_of_its_three_planes(name):
    plane = np.broadcast_to(photo()[0], (3, SIDE, SIDE))
    assert not plane.flags.writeable
    assert np.array_equal(draw_view(name, plane, sha(0), 1), draw_view(name, plane.copy(), sha(0), 1))


def test_affine_draws_the_numbers_that_cached_views_were_drawn_with(monkeypatch):
    given = {}
    monkeypatch.setattr(F, "affine", lambda pixels, **kwargs: given.update(kwargs) or pixels)
    draw_view("affine", np.full((3, 10, 20), 7, np.uint8), bytes(range(32)), 0)
    drawn = [given["angle"], *given["translate"], given["scale"], *given["shear"]]
    np.testing.assert_allclose(drawn, AFFINE_NUMBERS, atol=1e-5)


def test_an_affine_view_of_blank_paper_is_blank_paper_without_a_seam():
    for colour in (255, 128, 0):
        blank = np.full((3, 32, 32), colour, np.uint8)
        assert np.array_equal(draw_view("affine", blank, sha(1), 0), blank)


def test_an_affine_view_keeps_a_centred_square_about_where_and_as_large_as_it_was():
    shifts, sizes = [], []
    for number in range(60):
        view = draw_view("affine", square(), sha(number), number % 3)
        shifts.append(np.abs(middle(view)))
        sizes.append(view.sum(dtype=float) / square().sum(dtype=float))
    assert np.max(shifts) <= 0.12 * SIDE + 1
    assert np.max(shifts) > 0.08 * SIDE
    assert 0.6 < min(sizes) < 0.85 and 1.15 < max(sizes) < 1.5


def test_a_rotation_reaches_every_quarter_and_fills_the_corners_with_the_colour_of_the_border():
    colour = np.array([200, 30, 90], np.uint8).reshape(3, 1, 1)
    plain = np.broadcast_to(colour, (3, SIDE, SIDE))
    assert all(np.array_equal(draw_view("rotations", plain, sha(n), 0), plain) for n in range(20))
    dot = plain.copy()
    dot[:, SIDE // 2 - 3 : SIDE // 2 + 3, -12:-6] = 255
    where = [np.argwhere(draw_view("rotations", dot, sha(n), 0)[1] > 150).mean(0) - SIDE / 2 for n in range(40)]
    assert {(bool(y > 0), bool(x > 0)) for y, x in where} == {(a, b) for a in (True, False) for b in (True, False)}


def test_a_flip_is_one_of_three_and_never_the_image_itself():
    pixels = photo()
    expected = {pixels[:, :, ::-1].tobytes(), pixels[:, ::-1].tobytes(), pixels[:, ::-1, ::-1].tobytes()}
    assert {draw_view("flips", pixels, sha(n), 0).tobytes() for n in range(30)} == expected


def test_a_photometric_view_keeps_the_shapes_and_changes_the_colours_within_bounds():
    pixels = photo()
    for number in range(20):
        view = draw_view("photometric", pixels, sha(number), 0)
        assert np.corrcoef(view.reshape(-1), pixels.reshape(-1))[0, 1] > 0.8
        assert 0.7 < view.mean() / pixels.mean() < 1.3
        grey = draw_view("photometric", np.broadcast_to(pixels[0], pixels.shape), sha(number), 0)
        assert int(np.ptp(grey.astype(int), axis=0).max()) <= 2


def test_a_combination_is_one_augmentation_after_the_other_and_says_so():
    both = draw_view("affine+flips", photo(), sha(5), 0)
    moved = draw_view("affine", photo(), sha(5), 0)
    assert any(np.array_equal(both, flip) for flip in (moved[:, :, ::-1], moved[:, ::-1], moved[:, ::-1, ::-1]))
    assert words_of("affine+flips") == f"{words_of('affine')}; then {words_of('flips')}"


def test_a_name_that_is_not_known_is_answered_with_the_nearest():
    with pytest.raises(UnknownNameError, match="unknown augmentation 'flip': did you mean 'flips'"):
        words_of("affine+flip")
    with pytest.raises(UnknownNameError):
        words_of("")
    with pytest.raises(SettingError, match="once"):
        words_of("flips+flips")


AFFINE_NUMBERS = [
    12.512918,
    1.40463,
    0.835369,
    0.971496,
    0.651271,
    1.810781,
]  # angle, shift in x and y, scale, shear in x and y
