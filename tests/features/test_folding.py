"""Folded batch norms compute the same."""

import pytest
import timm
import torch
from torch import Tensor, nn

from fmad_dist.features.folding import folded
from tests.features.test_backbones import images


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "efficientnet_b0", "resnet18", "regnety_002"])
def test_folded_batch_norms_change_nothing(name: str) -> None:
    """Statistics as of no training, so that a norm left out or folded twice would show; float64, so that rounding does
    not (SiLU and squeeze-and-excitation of random weights blow it up a millionfold)."""
    torch.manual_seed(0)
    net = timm.create_model(name, features_only=True).eval().double()
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        nn.init.uniform_(norm.running_mean, -1, 1)
        nn.init.uniform_(norm.running_var, 0.5, 2)
        nn.init.uniform_(norm.weight, 0.5, 2)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    quick = folded(net)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in quick.modules())
    with torch.inference_mode():
        inputs = images(2).double() / 127.5 - 1
        pairs = zip(net(inputs), quick(inputs), strict=True)
    assert all((ours - theirs).norm() < 1e-7 * theirs.norm() for theirs, ours in pairs)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


class Branching(nn.Module):
    """What torch.fx cannot follow."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) if x.sum() > 0 else x


def test_a_network_that_cannot_be_followed_runs_as_it_is() -> None:
    net = Branching().eval()
    assert folded(net) is net
