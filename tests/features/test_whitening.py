import numpy as np
import pytest
import torch

from fmad_dist.features.whitening import NormName, Whitening, image_moments


def features(count: int = 6, channels: int = 5, grid: int = 4) -> torch.Tensor:
    """Channels of very different scale, in the precision of the cache."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.tensor([0.01, 1.0, 30.0, 3.0, 0.2])[:channels].view(-1, 1, 1)
    return ((torch.randn(count, channels, grid, grid, generator=generator) + 2.0) * scale).half()


def fitted(x: torch.Tensor) -> Whitening:
    whitening = Whitening(x.shape[1])
    whitening.set_moments(image_moments(x).sum(axis=0), x[:, 0].numel())
    return whitening


def test_moments_are_numpys() -> None:
    x = features()
    values = x.numpy().astype(np.float64)
    expected = np.stack([values.sum(axis=(2, 3)), (values**2).sum(axis=(2, 3))], axis=1)
    found = image_moments(x)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=1e-13)


def test_moments_of_an_image_do_not_depend_on_its_batch() -> None:
    x = features(9, grid=5)
    alone = np.concatenate([image_moments(image[None]) for image in x])
    np.testing.assert_array_equal(image_moments(x), alone)


def test_whitened_data_has_mean_0_and_deviation_1() -> None:
    x = features()
    white = fitted(x)(x).double()
    assert fitted(x)(x).dtype == torch.float32
    torch.testing.assert_close(white.mean(dim=(0, 2, 3)), torch.zeros(5, dtype=torch.float64), atol=1e-4, rtol=0)
    torch.testing.assert_close(
        white.std(dim=(0, 2, 3), correction=0), torch.ones(5, dtype=torch.float64), atol=1e-4, rtol=0
    )


def test_statistics_are_numpys() -> None:
    x = features()
    values = x.numpy().astype(np.float64)
    np.testing.assert_allclose(fitted(x).mean.numpy(), values.mean(axis=(0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(fitted(x).std.numpy(), values.std(axis=(0, 2, 3)), rtol=1e-5)


def test_an_untouched_whitening_is_the_identity() -> None:
    assert torch.equal(Whitening(5)(features()), features().float())


def test_a_dead_channel_does_not_explode() -> None:
    x = features()
    x[:, 1] = 4.0  # constant on all normal images, as unused channels behind a ReLU are
    whitening = fitted(x)
    assert whitening(x)[:, 1].abs().max() < 1e-3
    x[:, 1] += 0.01
    assert whitening(x)[:, 1].abs().max() < 100.0


def test_constant_features_stay_finite() -> None:
    assert fitted(torch.full((3, 2, 2, 2), 7.0).half())(torch.full((1, 2, 2, 2), 7.0)).isfinite().all()


@pytest.mark.parametrize("norm", ["channel", "layer"])
def test_pooled_features_follow_from_the_sums(norm: NormName) -> None:
    x = features()
    whitening = fitted(x)
    whitening.norm = norm
    pooled = whitening.pooled(image_moments(x), x.shape[2] * x.shape[3])
    torch.testing.assert_close(pooled, whitening(x).mean(dim=(2, 3)), rtol=1e-3, atol=1e-3)


def test_layer_norm_makes_every_image_standard() -> None:
    whitening = fitted(features())
    whitening.norm = "layer"
    found = whitening(features()).flatten(1)
    torch.testing.assert_close(found.mean(dim=1), torch.zeros(len(found)), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.std(dim=1), torch.ones(len(found)), atol=1e-2, rtol=0)


def test_statistics_travel_with_the_state() -> None:
    other = Whitening(5)
    other.load_state_dict(fitted(features()).state_dict())
    assert torch.equal(other(features()), fitted(features())(features()))
    with pytest.raises(RuntimeError):
        Whitening(4).load_state_dict(other.state_dict())
