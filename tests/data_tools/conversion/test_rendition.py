"""Originals beside or instead of resized images: reading gives the same pixels either way."""

import hashlib

import numpy as np
import pytest

from data_tools.conversion.convert import Conversion, convert
from data_tools.lint import lint
from fmad_dist.base.errors import UserError
from fmad_dist.stream.dataset import load_dataset
from fmad_dist.stream.reader import SampleReader
from tests.data_tools.official_trees import SIZE, TREES


@pytest.mark.parametrize(("layout", "tree"), TREES)
def test_originals_read_as_the_resized_rendition(converted, tmp_path, layout, tree):
    resized = converted(layout, tree)
    reader = SampleReader(resized.dataset)
    for name in ("original", "both"):
        out = str(tmp_path / name)
        convert(
            Conversion(
                layout=layout, dataset="tiny", source=resized.source, out=out, size=SIZE, num_workers=1, rendition=name
            )
        )
        report = lint(out)
        assert report.num_errors == 0, report.findings
        dataset = load_dataset(out)
        assert dataset.sample_ids == resized.dataset.sample_ids
        assert dataset.manifest.classes == resized.dataset.manifest.classes
        readers = [SampleReader(dataset, SIZE)]
        if name == "both":
            readers.append(SampleReader(dataset))
            assert readers[1].resized
            larger = SampleReader(dataset, SIZE + 7)
            assert not larger.resized
            assert larger.image(0).shape == (SIZE + 7, SIZE + 7, 3)
        for row in range(len(dataset)):
            for other in readers:
                np.testing.assert_array_equal(other.image(row), reader.image(row))
                masks, expected = other.masks(row), reader.masks(row)
                assert len(masks) == len(expected)
                for mask, stored in zip(masks, expected, strict=True):
                    np.testing.assert_array_equal(mask, stored)
            sample = dataset.sample(row)
            assert sample.mask_ids == resized.dataset.sample(row).mask_ids
            assert sample.original is not None
            published = (resized.source / dataset.table.column("source")[row].as_py()).read_bytes()
            assert sample.original.sha256 == hashlib.sha256(published).hexdigest()


def test_point_clouds_keep_their_size_beside_originals(converted, tmp_path):
    resized = converted("mvtec3d")
    out = str(tmp_path / "original")
    convert(
        Conversion(
            layout="mvtec3d", dataset="tiny", source=resized.source, out=out, num_workers=1, rendition="original"
        )
    )
    dataset = load_dataset(out)
    reader, small = SampleReader(dataset, SIZE), SampleReader(resized.dataset)
    for row in range(len(dataset)):
        points, sample = reader.xyz(row), dataset.sample(row)
        assert points is not None
        assert points.dtype == np.float32
        assert points.shape == (sample.source_height, sample.source_width, 3)
        assert small.xyz(row).shape == (SIZE, SIZE, 3)
    assert SampleReader(converted("mvtec").dataset).xyz(0) is None


def test_another_size_needs_originals(converted):
    dataset = converted("mvtec").dataset
    with pytest.raises(UserError, match=rf"stores {SIZE} px images and not 64.*--rendition both"):
        SampleReader(dataset, 64)


def test_the_rendition_is_part_of_the_digest(options):
    digests = {convert(options(rendition=name)).manifest.source_digest for name in ("resized", "original", "both")}
    assert len(digests) == 3
