"""The peer's density is a density, training raises it, and nothing depends on the batch."""

import math

import torch

from fmad_dist.comparison.cflow import CFlow, fit_cflow

CHANNELS, GRID = 6, 4


def no_field(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    raise AssertionError("CFlow-AD has no velocity")


def normals(num_images: int, seed: int) -> torch.Tensor:
    return torch.randn(num_images, CHANNELS, GRID, GRID, generator=torch.Generator().manual_seed(seed)) * 0.3 + 1.0


def test_density_is_the_change_of_variables() -> None:
    """log p(x) = log N(f(x); 0, I) + log |det df/dx|, with the Jacobian from automatic differentiation."""
    model = CFlow(CHANNELS, GRID, torch.device("cpu"))
    model.decoder.requires_grad_(False)
    token, position = torch.randn(CHANNELS, generator=torch.Generator().manual_seed(1)), torch.tensor([5])

    def latent(x: torch.Tensor) -> torch.Tensor:
        return model.decoder(x[None], [model.positions[position]])[0][0]

    jacobian = torch.autograd.functional.jacobian(latent, token)
    log_normal = -0.5 * latent(token).square().sum() - 0.5 * CHANNELS * math.log(2 * math.pi)
    expected = log_normal + torch.linalg.slogdet(jacobian).logabsdet
    torch.testing.assert_close(model.log_density(token[None], position)[0] * CHANNELS, expected, rtol=1e-4, atol=1e-4)


def test_training_finds_what_is_not_normal_and_repeats_itself() -> None:
    fitted = []
    for _ in range(2):
        model = CFlow(CHANNELS, GRID, torch.device("cpu"), seed=3)
        fit_cflow(model, (normals(16, seed) for seed in range(60)), seed=3)
        fitted.append(model)
    test = normals(8, 1000)
    test[0, :, 2, 1] -= 3.0
    scores = fitted[0](no_field, test, range(8))
    assert scores.shape == (8, GRID, GRID)
    assert torch.equal(scores, fitted[1](no_field, test, range(8)))
    others = scores.flatten().tolist()
    assert max(range(len(others)), key=others.__getitem__) == 2 * GRID + 1
    fresh = CFlow(CHANNELS, GRID, torch.device("cpu"), seed=3)(no_field, normals(8, 1001), range(8))
    assert fitted[0](no_field, normals(8, 1001), range(8)).mean() < fresh.mean() - 0.2
    torch.testing.assert_close(scores[[3]], fitted[0](no_field, test[[3]], [0]), rtol=1e-5, atol=1e-5)
