"""dataset/augmentation.py against torchvision's general operations, which its shortcuts replace."""

import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as transform

from dataset import augmentation
from dataset.augmentation import MAX_ROTATION, MAX_TRANSLATION, move_together, translate
from dataset.randomness import keyed_generator

NEAREST = InterpolationMode.NEAREST


def torchvision_affine(stacked, across, down):
    return transform.affine(stacked, 0, [across, down], 1.0, [0.0, 0.0], NEAREST, fill=0)


@pytest.mark.parametrize("side", [7, 32, 37, 128, 225])
def test_a_translation_has_the_bits_of_torchvisions_affine(side):
    stacked = torch.randn(4, side, side, generator=torch.Generator().manual_seed(side))
    most = round(MAX_TRANSLATION * side)
    steps = sorted({-most, -most // 2, -1, 0, 1, most // 3, most})
    for across in steps:
        for down in steps:
            found = translate(stacked, across, down)
            assert torch.equal(found, torchvision_affine(stacked, across, down))


@pytest.mark.parametrize("side", [7, 32, 37, 128])
def test_moving_together_has_the_bits_of_torchvisions_operations_with_a_fill(side, monkeypatch):
    image = torch.randn(3, side, side, generator=torch.Generator().manual_seed(side))
    mask = (image[:1] > 0.5).float()
    found = [move_together(image, mask, keyed_generator(number)) for number in range(40)]

    def filled(stacked, angle):
        assert abs(angle) <= MAX_ROTATION
        return transform.rotate(stacked, angle, NEAREST, fill=0)

    monkeypatch.setattr(augmentation, "translate", torchvision_affine)
    monkeypatch.setattr(augmentation, "rotate", filled)
    for number, (moved, moved_mask) in enumerate(found):
        wanted, wanted_mask = move_together(image, mask, keyed_generator(number))
        assert torch.equal(moved, wanted) and torch.equal(moved_mask, wanted_mask)
