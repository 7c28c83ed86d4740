import pytest
import torch

from fmad_dist.config.run import ModelConfig
from fmad_dist.networks.build import build_network, describe_network, network_spec

UNET = ModelConfig(network="unet", width=32, levels=(1, 2), blocks=1, use_labels=True)


def test_a_unet_answers_in_the_inputs_shape_and_starts_at_zero() -> None:
    spec = network_spec(UNET, channels=6, grid=8, num_classes=3)
    network = build_network(spec)
    x, t = torch.randn(2, 6, 8, 8), torch.tensor([0.1, 0.9])
    assert torch.equal(network(x, t), torch.zeros_like(x))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    unknown, first = network(x, t), network(x, t, torch.tensor([0, 0]))
    assert not torch.allclose(unknown, first)
    assert not torch.allclose(unknown, network(x, t.flip(0)))
    torch.testing.assert_close(network(x[1:], t[1:]), unknown[1:], rtol=1e-4, atol=1e-5)
    assert "U-Net with 32, 64 channels" in describe_network(spec)


def test_wt_flows_unet_has_its_published_size() -> None:
    spec = network_spec(ModelConfig(network="unet", width=128, levels=(1, 2, 2), blocks=1), channels=1024, grid=8)
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in build_network(spec).parameters())
    assert count / 1e6 == pytest.approx(21, rel=0.06)
