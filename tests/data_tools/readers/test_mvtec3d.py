"""What careless readers of MVTec 3D-AD get wrong, and trees that are refused."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.data_tools.official_trees import nearest
from tests.data_tools.readers.refusals import assert_refused, cloud

POINTS = "bagel/train/good/xyz/000.tiff"

BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "mvtec3d: cloud missing": (lambda t: (t / POINTS).unlink(), "000.png: its point cloud is missing"),
    "mvtec3d: cloud without image": (
        lambda t: (t / "bagel/train/good/rgb/000.png").unlink(),
        "xyz/000.tiff: no image in .*rgb belongs",
    ),
    "mvtec3d: cloud of another size": (
        lambda t: cloud(t / POINTS, np.ones((20, 30, 3), np.float32)),
        "000.tiff: the point cloud is 30x20 but its image is 48x48",
    ),
    "mvtec3d: cloud of another type": (
        lambda t: cloud(t / POINTS, np.ones((48, 48, 3), np.float64)),
        "000.tiff: float64 .* not float32",
    ),
    "mvtec3d: cloud is no TIFF": (lambda t: (t / POINTS).write_bytes(b"points"), "000.tiff: cannot be decoded"),
    "mvtec3d: mask missing": (
        lambda t: (t / "bagel/test/crack/gt/001.png").unlink(),
        "crack/rgb/001.png: its mask is missing; expected .*gt/001.png",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_layout(converted, tmp_path, case):
    assert_refused(converted, tmp_path, case, *BAD[case])


def test_points_keep_their_bits_and_holes(converted):
    case = converted("mvtec3d")
    for fact in case.facts["images"]:
        sample = case.samples[fact["source"]]
        points = np.load(io.BytesIO(case.stored(sample, sample.xyz)))
        published = case.published(fact["xyz"])
        assert points.dtype == np.float32
        assert np.array_equal(points, nearest(published))
        missing = ~points.any(axis=-1)
        assert missing.any()
        assert not missing.all()
        assert points[~missing][:, 2].min() > 0.39, "a missing point must not be mixed into its neighbours"


def test_points_and_masks_show_the_same_pixels(converted):
    case = converted("mvtec3d")
    (fact,) = [f for f in case.facts["images"] if f["source"] == "rope/test/cut/rgb/000.png"]
    sample = case.samples[fact["source"]]
    points = np.load(io.BytesIO(case.stored(sample, sample.xyz)))
    marked = case.stored_pixels(sample, sample.masks[0]) != 0
    published_mask, published = case.published(fact["masks"][0]["file"]) != 0, case.published(fact["xyz"])
    inside = {tuple(point) for point in published[published_mask]}
    assert {tuple(point) for point in points[marked]} <= inside
    assert not {tuple(point) for point in points[~marked] if point.any()} & inside


def test_mask_of_a_normal_scan_is_no_defect(converted):
    case = converted("mvtec3d")
    assert (case.source / "bagel/test/good/gt/000.png").exists()
    assert case.samples["bagel/test/good/rgb/000.png"].masks == ()
