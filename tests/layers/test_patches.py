"""Pictures of any size to grids of patches."""

import pytest
import torch
from torch import nn

from vitrail.errors import VitrailError
from vitrail.layers.patches import ConvolutionalPatches, LinearPatches


def test_linear_patches_are_pixels_times_one_matrix() -> None:
    patches = LinearPatches(6, 4).double()
    images = torch.randn(2, 3, 8, 12, dtype=torch.float64)
    picture = patches(images)
    assert picture.shape == (2, 6, 2, 3)
    for row in range(2):
        for column in range(3):
            pixels = images[:, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].flatten(1)
            expected = pixels @ patches.weight.flatten(1).T + patches.bias
            torch.testing.assert_close(picture[:, :, row, column], expected, rtol=1e-12, atol=1e-12)


def test_linear_patches_continue_the_picture_with_zeros_at_the_bottom_and_the_right() -> None:
    patches = LinearPatches(6, 4)
    images = torch.randn(1, 3, 5, 10)
    filled = torch.zeros(1, 3, 8, 12)
    filled[:, :, :5, :10] = images
    assert torch.equal(patches(images), patches(filled))


@pytest.mark.parametrize("patch_size", [8, 16])
@pytest.mark.parametrize("kind", [ConvolutionalPatches, LinearPatches])
def test_any_size_makes_a_grid_rounded_up(kind: type[nn.Module], patch_size: int) -> None:
    patches = kind(8, patch_size).eval()
    for height in range(1, 50, 3):
        width = 51 - height
        grid = patches(torch.zeros(1, 3, height, width)).shape[2:]
        assert tuple(grid) == (-(-height // patch_size), -(-width // patch_size))


@pytest.mark.parametrize(("patch_size", "widths"), [(8, [16, 32, 64]), (16, [8, 16, 32, 64])])
def test_convolutional_patches_double_their_width(patch_size: int, widths: list[int]) -> None:
    patches = ConvolutionalPatches(64, patch_size)
    convolutions = [module for module in patches.modules() if isinstance(module, nn.Conv2d)]
    assert [convolution.out_channels for convolution in convolutions] == widths
    assert [convolution.in_channels for convolution in convolutions] == [3, *widths[:-1]]
    assert isinstance(patches[-1], nn.Sequential)  # no GELU after the last
    assert sum(isinstance(module, nn.GELU) for module in patches) == len(widths) - 1


@pytest.mark.parametrize(("width", "patch_size"), [(64, 4), (64, 32), (20, 16)])
def test_convolutional_patches_of_other_sizes_are_refused(width: int, patch_size: int) -> None:
    with pytest.raises(VitrailError, match=f"not {patch_size} with {width}"):
        ConvolutionalPatches(width, patch_size)
