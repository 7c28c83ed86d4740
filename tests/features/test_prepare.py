"""What training knows about its inputs: the same with and without a cache, of the training normals alone."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from fmad_dist.base.world import World
from fmad_dist.config.run import FeatureConfig, RunConfig
from fmad_dist.features import prepare as prepare_module
from fmad_dist.features.prepare import prepare_features
from fmad_dist.stream.image_source import ImageSource, SampleSource
from fmad_dist.stream.mixture import Mixture, TrainSplit, split_normals
from tests.features.test_cache import CPU, SIDE, damage_an_image


@dataclass
class Images:
    """What preparation needs to know about the images of a run."""

    mixture: Mixture
    split: TrainSplit
    images: SampleSource


def images_of(mixture: Mixture, rows: np.ndarray) -> Images:
    return Images(mixture, TrainSplit(rows, rows[:0]), ImageSource(mixture, SIDE))


def run_config(cache: Path | None = None) -> RunConfig:
    return RunConfig(features=FeatureConfig(taps=(1, 2), grid=4, image_size=SIDE, cache=cache and str(cache)))


def test_with_or_without_a_cache_the_inputs_are_the_same(tmp_path: Path, tiny_mixture: Mixture) -> None:
    rows = split_normals(tiny_mixture, 0.1).train
    fresh = prepare_features(run_config(), images_of(tiny_mixture, rows), World(), CPU)
    cached = prepare_features(run_config(tmp_path), images_of(tiny_mixture, rows), World(), CPU)
    assert (fresh.cached, cached.cached) == (False, True)
    assert torch.equal(fresh.whitening.mean, cached.whitening.mean)
    assert torch.equal(fresh.whitening.std, cached.whitening.std)
    np.testing.assert_array_equal(fresh.sums.moments, cached.sums.moments)
    row = int(rows[5])
    assert torch.equal(fresh.backbone(fresh.source.read(row)[None])[0], cached.source.read(row))


def test_held_out_images_do_not_shape_the_whitening(tmp_path: Path, tiny_mixture: Mixture) -> None:
    split = split_normals(tiny_mixture, 0.3)
    prepared = prepare_features(run_config(tmp_path), images_of(tiny_mixture, split.train), World(), CPU)
    x = torch.stack([prepared.source.read(int(row)) for row in split.train])
    white = prepared.whitening(x)
    assert white.mean(dim=(0, 2, 3)).abs().max() < 1e-4
    assert prepared.sums.counts.sum() == len(split.train)


def test_class_means_by_hand(tiny_mixture: Mixture) -> None:
    rows = tiny_mixture.rows("train")
    prepared = prepare_features(run_config(), images_of(tiny_mixture, rows), World(), CPU)
    numbers = tiny_mixture.class_numbers[rows]
    found = prepared.class_means()
    for number in range(3):
        own = torch.stack([prepared.source.read(int(row)) for row in rows[numbers == number]])
        expected = prepared.whitening(prepared.backbone(own)).mean(dim=(0, 2, 3))
        torch.testing.assert_close(found[number], expected, atol=1e-4, rtol=1e-4)


def test_a_sample_of_a_large_dataset_still_has_every_class(
    tiny_mixture: Mixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A class without a mean would have the distance NaN to every image, and NaN counts as the smallest."""
    monkeypatch.setattr(prepare_module, "MAX_WHITENING_IMAGES", 2)
    rows = tiny_mixture.rows("train")
    prepared = prepare_features(run_config(), images_of(tiny_mixture, rows), World(), CPU)
    assert prepared.sums.counts.sum() < 6
    assert prepared.class_means().isfinite().all()


def test_damaged_images_are_left_out_and_listed(own_copy: Path, tmp_path: Path) -> None:
    row, sample_id = damage_an_image(own_copy)
    mixture = Mixture.load([str(own_copy)])
    rows = mixture.rows("train")
    fresh = prepare_features(run_config(), images_of(mixture, rows), World(), CPU)
    cached = prepare_features(run_config(tmp_path / "other"), images_of(mixture, rows), World(), CPU)
    for prepared in (fresh, cached):
        assert [one.sample_id for one in prepared.bad] == [sample_id]
        assert prepared.sums.counts.tolist() == np.bincount(mixture.class_numbers[rows[rows != row]]).tolist()
        assert torch.isfinite(prepared.whitening.std).all()
