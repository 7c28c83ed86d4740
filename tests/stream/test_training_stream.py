"""Appearances per epoch by hand, and what must hold for all of them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmad_dist.base.errors import UserError
from fmad_dist.config.run import DataConfig
from fmad_dist.stream.training_stream import class_quotas, largest_remainders, open_stream

NAMES = ["a/x", "a/y", "b/x"]
COUNTS = np.array([100, 50, 10])


def test_without_wishes_every_image_appears_once() -> None:
    assert class_quotas(COUNTS, NAMES).tolist() == [100, 50, 10]


def test_by_hand() -> None:
    assert class_quotas(COUNTS, NAMES, temperature=1e9).tolist() == [100, 100, 100]
    assert class_quotas(COUNTS, NAMES, class_weights={"b/x": 3, "a/y": 0.5}).tolist() == [100, 25, 30]
    # 160 in equal shares, of which dataset a divides 80 as 100 : 50; then 210 as 157.5 : 52.5, ties to the first
    assert class_quotas(COUNTS, NAMES, shares={"a": 1, "b": 1}).tolist() == [53, 27, 80]
    assert class_quotas(COUNTS, NAMES, shares={"a": 0.75, "b": 0.25}, class_weights={"a/y": 2}).tolist() == [79, 79, 52]


@given(
    st.lists(st.integers(1, 500), min_size=1, max_size=8),
    st.floats(1.0, 20.0),
    st.lists(st.floats(0.05, 10.0), min_size=8, max_size=8),
    st.lists(st.floats(0.5, 10.0), min_size=3, max_size=3),
)
def test_shares_are_exact(counts: list[int], temperature: float, weights: list[float], shares: list[float]) -> None:
    """Datasets get their shares within one sample, the classes of one divide it within one, and nothing is lost."""
    names = [f"d{number % 3}/c{number}" for number in range(len(counts))]
    datasets = sorted({name[:2] for name in names})
    wanted = dict(zip(datasets, shares, strict=False))
    class_weights = dict(zip(names, weights, strict=False))
    before = class_quotas_or_none(counts, names, temperature, {}, class_weights)
    found = class_quotas_or_none(counts, names, temperature, wanted, class_weights)
    if before is None or found is None:
        return  # a class would never appear, which is refused
    assert found.sum() == before.sum()
    natural = np.round(max(counts) * (np.array(counts) / max(counts)) ** (1 / temperature))
    ideal = natural * np.array(weights[: len(counts)])
    for name in datasets:
        own = np.array([other.startswith(name) for other in names])
        assert abs(found[own].sum() - found.sum() * wanted[name] / sum(wanted.values())) < 1
        assert (np.abs(found[own] - found[own].sum() * ideal[own] / ideal[own].sum()) < 1).all()


def class_quotas_or_none(counts: list[int], *arguments: object) -> np.ndarray | None:
    try:
        return class_quotas(np.array(counts), *arguments)  # type: ignore[arg-type]
    except UserError:
        return None


@given(st.integers(0, 10**6), st.lists(st.floats(0.001, 1e3), min_size=1, max_size=20))
def test_largest_remainders_add_up(total: int, ideal: list[float]) -> None:
    found = largest_remainders(total, np.array(ideal))
    assert found.sum() == total
    assert (np.abs(found - total * np.array(ideal) / sum(ideal)) < 1 + 1e-6).all()


@pytest.mark.parametrize(
    ("shares", "class_weights", "message"),
    [
        ({"a": 1}, {}, "data.weights: no share for the dataset b"),
        ({"a": 1, "b": 1, "c": 1}, {}, "data.weights: unknown name 'c'"),
        ({}, {"a/z": 2}, r"data.class_weights: unknown name 'a/z'; did you mean 'a/[xy]'"),
        ({}, {"a": 2}, "data.class_weights: unknown name 'a'"),
        ({"a": 1e6, "b": 1}, {}, "class b/x would never appear"),
        ({}, {"b/x": 0.001}, "class b/x would never appear"),
        ({}, {"b/x": 1e300}, "data.class_weights, .* an epoch would have 1e[+]301 samples"),
    ],
)
def test_bad_wishes(shares: dict[str, float], class_weights: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        class_quotas(COUNTS, NAMES, 1.0, shares, class_weights)


def test_a_configured_stream_has_the_shares(tiny_url: str, alpha_url: str) -> None:
    data = DataConfig(manifests=(tiny_url, alpha_url), weights={"tiny": 1.0, "alpha": 3.0})
    stream = open_stream(data, seed=0)
    order = np.concatenate([stream.plan.epoch(number) for number in range(4)])
    from_alpha = sum(stream.mixture.sample_id(int(index)).startswith("alpha/") for index in order)
    assert from_alpha == 0.75 * len(order)
    plain = open_stream(DataConfig(manifests=(tiny_url, alpha_url)), seed=0)
    assert plain.plan.digest != stream.plan.digest
    assert plain.plan.epoch_size == stream.plan.epoch_size == len(plain.split.train)
