import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage
from scipy.ndimage import gaussian_filter

from fmad_dist.config.protocol import named_protocol
from fmad_dist.scoring.inversion import Inversion
from fmad_dist.scoring.maps import blur, top_mean, upsample


def maps(batch: int = 2, side: int = 24) -> torch.Tensor:
    return torch.rand(batch, side, side, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_a_constant_stays_constant() -> None:
    torch.testing.assert_close(upsample(torch.full((2, 4, 4), 3.0), 37), torch.full((2, 37, 37), 3.0))


def test_upsampling_by_hand() -> None:
    """Pixel centres: the outer quarter repeats the corner token, between the centres it is linear."""
    found = upsample(torch.tensor([[[0.0, 4.0], [0.0, 4.0]]]), 4)
    assert found[0, 0].tolist() == [0.0, 1.0, 3.0, 4.0]
    assert torch.equal(upsample(maps(side=5), 5), maps(side=5))


def test_upsampling_does_not_move_the_centre_of_mass() -> None:
    spot = torch.zeros(1, 8, 8)
    spot[0, 2, 5] = 1.0
    found = upsample(spot, 64)[0]
    positions = torch.arange(64.0) + 0.5
    assert (found.sum(1) * positions).sum() / found.sum() == pytest.approx(2.5 * 8)
    assert (found.sum(0) * positions).sum() / found.sum() == pytest.approx(5.5 * 8)


@pytest.mark.parametrize("sigma", [0.5, 1.0, 4.0])
def test_blur_is_the_fields_gaussian(sigma: float) -> None:
    expected = np.stack([gaussian_filter(image, sigma) for image in maps().numpy()])  # reflects at the edges
    torch.testing.assert_close(blur(maps(), sigma), torch.from_numpy(expected))


@given(st.floats(0.1, 40.0), st.integers(2, 20))
def test_blur_preserves_the_mean_and_the_range(sigma: float, side: int) -> None:
    before = maps(side=side)
    after = blur(before, sigma)
    torch.testing.assert_close(after.mean(dim=(1, 2)), before.mean(dim=(1, 2)))
    assert after.min() >= before.min() - 1e-12
    assert after.max() <= before.max() + 1e-12


def test_no_blur_is_the_identity() -> None:
    assert torch.equal(blur(maps(), 0.0), maps())


def test_blur_keeps_images_apart() -> None:
    torch.testing.assert_close(blur(maps(3), 2.0)[1:2], blur(maps(3)[1:2], 2.0))


def test_blur_keeps_single_precision() -> None:
    assert blur(maps().float(), 1.5).dtype == torch.float32


@pytest.mark.parametrize(("percent", "expected"), [(1.0, 9.0), (10.0, 9.0), (30.0, 8.0), (100.0, 4.5), (0.001, 9.0)])
def test_top_mean_by_hand(percent: float, expected: float) -> None:
    values = torch.tensor([3.0, 9.0, 1.0, 0.0, 7.0, 5.0, 2.0, 8.0, 6.0, 4.0]).view(1, 2, 5)
    assert top_mean(values, percent).tolist() == [expected]


@given(st.floats(0.01, 100.0))
def test_top_mean_lies_between_mean_and_maximum(percent: float) -> None:
    values = maps()
    score = top_mean(values, percent)
    assert (score <= values.flatten(1).max(dim=1).values + 1e-12).all()
    assert (score >= values.flatten(1).mean(dim=1) - 1e-12).all()


def test_top_mean_ignores_where_pixels_are() -> None:
    values = maps(1)
    assert torch.equal(top_mean(values.transpose(1, 2).flip(1), 5.0), top_mean(values, 5.0))


def test_maps_and_image_scores_are_those_of_the_public_codes() -> None:
    grid = torch.rand(2, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    corners = upsample(grid, 256, align_corners=True)
    scores, maps = Inversion(1).finish(grid, named_protocol("ader"))
    expected = np.stack([ndimage.gaussian_filter(one, 4) for one in corners.numpy()])
    torch.testing.assert_close(maps, torch.from_numpy(expected))
    assert torch.equal(scores, maps.amax((1, 2)))

    scores, maps = Inversion(1).finish(grid, named_protocol("dinomaly"))
    x = torch.arange(5) - 2.0
    kernel = torch.exp(-(x[:, None] ** 2 + x**2) / (2 * 16)).double()
    convolved = torch.nn.functional.conv2d(corners[:, None], (kernel / kernel.sum())[None, None], padding=2)[:, 0]
    torch.testing.assert_close(maps, convolved)
    torch.testing.assert_close(scores, maps.flatten(1).sort(dim=1).values[:, -655:].mean(1))  # int(1 % of 256 * 256)

    scores, maps = Inversion(1).finish(grid, named_protocol("flowad"))
    assert torch.equal(maps, upsample(grid, 256))
    assert torch.equal(scores, maps.amax((1, 2)) - maps.amin((1, 2)))
