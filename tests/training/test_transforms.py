"""Joint transforms: what is painted into the images stays under its mask and inside its box."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from stmi_layers.training.transforms import Augmentation, erase, move


def rectangle(box: Tensor, size: tuple[int, int]) -> Tensor:
    """The pixels inside left, top, right and bottom."""
    left, top, right, bottom = box.long().tolist()
    mask = torch.zeros(size, dtype=torch.bool)
    mask[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)] = True
    return mask


@given(st.data(), st.integers(4, 24), st.integers(4, 24), st.floats(0, 0.6), st.sampled_from([0.0, 0.5, 1.0]))
def test_images_masks_and_boxes_stay_together(data, height, width, padding, flip) -> None:
    left, top = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    right, bottom = data.draw(st.integers(left + 1, width)), data.draw(st.integers(top + 1, height))
    boxes = torch.tensor([[left, top, right, bottom]], dtype=torch.float32)
    painted = rectangle(boxes[0], (height, width)).expand(2, -1, -1)
    torch.manual_seed(data.draw(st.integers(0, 10_000)))
    augmentation = Augmentation(flip=flip, padding=padding)
    images, masks, moved = move(painted[:, None].repeat(1, 3, 1, 1).float(), painted, augmentation, boxes=boxes)
    assert images.shape == (2, 3, height, width)
    assert type(images) is type(masks) is type(moved) is Tensor
    assert torch.equal(images, masks[:, None].expand_as(images).float())
    assert torch.equal(rectangle(moved[0], (height, width)), masks[0])
    assert torch.equal(masks[0], masks[1])


def test_boxes_are_not_needed() -> None:
    images, masks = torch.rand(2, 3, 8, 6), torch.rand(2, 8, 6) < 0.5
    torch.manual_seed(3)
    with_boxes = move(images, masks, Augmentation(), boxes=torch.tensor([[0.0, 0.0, 2.0, 2.0]]))
    torch.manual_seed(3)
    without = move(images, masks, Augmentation())
    assert all(torch.equal(one, other) for one, other in zip(with_boxes[:2], without[:2], strict=True))
    assert without[2].shape == (0, 4)


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_every_modality_is_erased_on_its_own(probability) -> None:
    erased = erase(torch.ones(4, 3, 32, 32), Augmentation(erasing=probability)) == 0.5
    assert erased.flatten(1).any(1).all() == (probability == 1)
    assert len(erased.unique(dim=0)) == (4 if probability else 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"flip": 1.5}, r"flip and erasing must lie in \[0, 1\]; received 1.5 and 0.5"),
        ({"erasing": -0.1}, "flip and erasing must lie in"),
        ({"padding": -1.0}, "padding must not be negative; received -1.0"),
        ({"erasing_area": (0.5, 0.2)}, r"erasing_area must rise .*; received \(0.5, 0.2\)"),
        ({"erasing_aspect": (0.0, 2.0)}, r"erasing_aspect be positive and rise; received .* \(0.0, 2.0\)"),
    ],
)
def test_augmentation_errors(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Augmentation(**options)


@pytest.mark.parametrize("seed", range(6))
def test_the_draws_are_those_of_torchvision(seed) -> None:
    images, masks = torch.rand(2, 3, 24, 12), torch.rand(2, 24, 12) < 0.5
    augmentation = Augmentation(erasing=0.7, padding=0.3)
    padding = round(0.3 * (24 * 12) ** 0.5)
    geometry = v2.Compose([v2.RandomHorizontalFlip(), v2.RandomCrop((24, 12), padding=padding)])
    erasing = v2.RandomErasing(0.7, augmentation.erasing_area, augmentation.erasing_aspect, 0.5)
    torch.manual_seed(seed)
    expected, expected_masks = geometry(tv_tensors.Image(images), tv_tensors.Mask(masks))
    expected = torch.stack([erasing(image) for image in expected.as_subclass(Tensor)])
    generator = torch.Generator().manual_seed(seed)
    moved, moved_masks, _ = move(images, masks, augmentation, generator=generator)
    assert torch.equal(erase(moved, augmentation, generator=generator), expected)
    assert torch.equal(moved_masks, expected_masks.as_subclass(Tensor))
