"""The synthetic set: held-out normals only, and the same images whoever draws them."""

from types import SimpleNamespace

import numpy as np
import pytest

from fmad_dist.defects.photograph import KINDS
from fmad_dist.follow.synthetic import GOOD, SyntheticSet
from fmad_dist.stream.mixture import TrainSplit


def test_only_held_out_normals_are_ever_used(data: SimpleNamespace) -> None:
    images = SyntheticSet(data, per_class=100)
    assert images.rows.tolist() == data.split.held_out.tolist()
    used = {image.sample_id.partition("+")[0] for row in images.rows.tolist() for image in images.images(row)}
    mixture = data.mixture
    assert used == set(mixture.sample_ids(data.split.held_out))
    assert not used & set(mixture.sample_ids(mixture.rows("test")))
    assert not used & set(mixture.sample_ids(data.split.train))


def test_a_split_with_test_images_is_refused(data: SimpleNamespace) -> None:
    wrong = SimpleNamespace(mixture=data.mixture, split=TrainSplit(data.split.train, data.mixture.rows("test")))
    with pytest.raises(AssertionError):
        SyntheticSet(wrong, per_class=4)


def test_each_normal_is_there_as_it_is_and_with_every_kind(data: SimpleNamespace) -> None:
    images = SyntheticSet(data, per_class=2)
    assert [images.class_name(row) for row in images.rows.tolist()] == [
        f"tiny/{name}" for name in ("bolt", "nut", "washer") for _ in range(2)
    ]
    row = int(images.rows[0])
    found = images.images(row)
    stored = data.images.read(row).permute(1, 2, 0).numpy()
    assert [image.kind for image in found] == [GOOD, *KINDS]
    assert np.array_equal(found[0].pixels, stored)
    assert not found[0].mask.any()
    for image in found[1:]:
        assert image.sample_id == f"{found[0].sample_id}+{image.kind}"
        assert np.array_equal(image.pixels[~image.mask], stored[~image.mask])
    again = SyntheticSet(data, per_class=100).images(row)  # neither the choice nor what was drawn before matters
    assert all(np.array_equal(a.pixels, b.pixels) for a, b in zip(found, again, strict=True))
