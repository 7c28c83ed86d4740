import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fmad_dist.config import ObjectiveConfig
from fmad_dist.flow.couplings import CouplingStrength, couple, merged_strength, strength_of, windows

PERMUTING = ["ot", "wt_sample", "wt_token", "wt_group"]


def pair(name: str, **options: object) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    x, noise = (torch.randn(4, 12, 4, 4, generator=generator) for _ in range(2))
    return x, noise, couple(x, noise, ObjectiveConfig(path="reversed", coupling=name, **options))  # type: ignore[arg-type]


def cost(x: Tensor, noise: Tensor) -> float:
    return (x - noise).square().sum().item()


def test_worst_transport_costs_more_and_optimal_less_than_independent() -> None:
    x, noise, _ = pair("independent")
    independent = cost(x, noise)
    assert cost(x, pair("ot")[2]) < independent
    costs = [cost(x, pair(name, **options)[2]) for name, options in STRONGER]
    assert independent < costs[0]
    assert costs == sorted(costs)


STRONGER: list[tuple[str, dict[str, object]]] = [
    ("wt_sample", {}),
    ("wt_token", {}),
    ("wt_group", {"group": 4}),
    ("wt_group", {"group": 2}),
    ("wt_group", {"group": 1}),
]


@pytest.mark.parametrize("name", PERMUTING)
def test_a_permutation_keeps_every_noise_value(name: str) -> None:
    _, noise, coupled = pair(name, group=5, window=30)
    assert torch.equal(noise.flatten().sort().values, coupled.flatten().sort().values)
    if name == "wt_group":  # channels stay together in their groups
        assert torch.equal(noise[:, :5].flatten().sort().values, coupled[:, :5].flatten().sort().values)


def test_samples_are_paired_as_brute_force_does() -> None:
    x, noise, worst = pair("wt_sample")
    best = pair("ot")[2]
    costs = [cost(x, noise[list(order)]) for order in itertools.permutations(range(4))]
    assert cost(x, worst) == pytest.approx(max(costs), rel=1e-6)
    assert cost(x, best) == pytest.approx(min(costs), rel=1e-6)


def test_sorting_solves_the_group_of_one_channel() -> None:
    x, _, sorted_noise = pair("wt_group", group=1)
    for channel in range(12):
        order = x[:, channel].flatten().argsort()
        assert (sorted_noise[:, channel].flatten()[order].diff() <= 0).all()


@given(st.floats(0.0, 1.0))
def test_soft_coupling_has_its_cosine_and_keeps_lengths(strength: float) -> None:
    x, noise, coupled = pair("wt_soft", strength=strength)
    cosine = torch.nn.functional.cosine_similarity(coupled, x, dim=1)
    torch.testing.assert_close(cosine, torch.full_like(cosine, -strength), atol=1e-5, rtol=0)
    torch.testing.assert_close(coupled.norm(dim=1), noise.norm(dim=1))


@given(st.integers(1, 3000), st.integers(2, 512))
def test_windows_cover_everything_evenly(count: int, size: int) -> None:
    found = list(windows(count, size))
    lengths = [part.stop - part.start for part in found]
    assert [part.start for part in found[1:]] == [part.stop for part in found[:-1]]
    assert (found[0].start, found[-1].stop) == (0, count)
    assert max(lengths) <= size
    assert max(lengths) - min(lengths) <= 1


def test_strength_is_measured_and_survives_a_restart() -> None:
    x, noise, mirrored = pair("wt_soft", strength=1.0)
    strength = CouplingStrength()
    strength.update(x, mirrored)
    expected = (mirrored.norm(dim=1) * x.norm(dim=1)).sum() / x.square().sum()
    assert strength_of(strength.state()) == pytest.approx(expected.item(), rel=1e-5)
    other = CouplingStrength()
    other.load(strength.state())
    for one in (strength, other):
        one.update(x, noise)
    assert other.state() == strength.state()
    assert merged_strength([(1.0, 4.0), (3.0, 8.0)]) == (2.0, 6.0)
    assert strength_of((0.0, 0.0)) == 0.0


def test_wt_token_is_as_strong_as_theory_measured() -> None:
    """C = 1024, windows of 512 tokens: a about .09, and .8 in groups of eight channels (methods, measured)."""
    generator = torch.Generator().manual_seed(0)
    x, noise = (torch.randn(2, 1024, 16, 16, generator=generator) for _ in range(2))
    for options, expected in (({"coupling": "wt_token"}, 0.09), ({"coupling": "wt_group", "group": 8}, 0.80)):
        part = slice(None) if options["coupling"] == "wt_token" else slice(0, 16)
        coupled = couple(x[:, part], noise[:, part], ObjectiveConfig(path="reversed", **options))  # type: ignore[arg-type]
        strength = CouplingStrength()
        strength.update(x[:, part], coupled)
        assert strength_of(strength.state()) == pytest.approx(expected, abs=0.02)
