"""Which images thresholds are fitted to: normal ones that did not train the detector, each of a class it has."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from fmad_dist.base.errors import UserError
from fmad_dist.detector.fit import GivenNormals
from fmad_dist.prediction.normal_images import find_normals
from fmad_dist.stream.image_source import ImageSource
from fmad_dist.stream.mixture import Mixture, split_normals
from fmad_dist.stream.reader import BadSample
from tests.support.small_parts import SIDE, build_dataset, save_image

CLASSES = ("tiny/bolt", "tiny/nut", "tiny/washer")


def spec_of(digests: dict[str, str], classes: tuple[str, ...] = CLASSES) -> Any:
    return SimpleNamespace(class_names=classes, manifest_digests=digests, features=SimpleNamespace(image_size=SIDE))


@pytest.fixture(scope="module")
def trained(tiny_mixture: Mixture) -> Any:
    return spec_of(tiny_mixture.digests)


def names(found: GivenNormals) -> list[str]:
    return [item.name for item in found.images.items]  # type: ignore[attr-defined]


def pixels(found: GivenNormals) -> list[Any]:
    return found.images.decode(found.images.fetch(range(len(found.class_numbers))))


def test_what_trained_the_detector_is_left_out(
    tiny_url: str, tiny_mixture: Mixture, trained: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    found = find_normals(trained, data=[tiny_url], holdout=0.3)
    held_out = split_normals(tiny_mixture, 0.3).held_out
    assert names(found) == tiny_mixture.sample_ids(held_out)
    assert found.class_numbers.tolist() == tiny_mixture.class_numbers[held_out].tolist()
    assert found.origin == tiny_mixture.digests
    left_out = 24 - len(held_out)
    assert f"{len(held_out)} normal images; left out are 0 anomalous ones and {left_out} that trained the model" in (
        capsys.readouterr().err
    )
    wanted = ImageSource(tiny_mixture, SIDE)
    for image, row in zip(pixels(found), held_out.tolist(), strict=True):
        assert torch.equal(image, wanted.read(row))


def test_without_the_held_out_images_it_is_refused(tiny_url: str, trained: Any) -> None:
    with pytest.raises(UserError, match=f"--data {tiny_url}: trained the model; give --run"):
        find_normals(trained, data=[tiny_url])
    assert names(find_normals(trained, data=[tiny_url], splits=["val"])) == []


def test_a_named_test_split_gives_its_normals(tiny_url: str, trained: Any, capsys: pytest.CaptureFixture[str]) -> None:
    found = find_normals(trained, data=[tiny_url], splits=["test"])
    assert names(found) == [f"tiny/{name}/test/good/000" for name in ("bolt", "nut", "washer")]
    assert "left out are 3 anomalous ones and 0 that trained" in capsys.readouterr().err


def test_another_version_of_the_dataset_is_warned_of(tiny_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = find_normals(spec_of({"tiny": "0" * 64}), data=[tiny_url])
    assert len(found.class_numbers) == 24
    assert "another version of tiny trained the model" in capsys.readouterr().err


def test_new_datasets_give_all_normals_of_known_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = build_dataset(tmp_path, "line3", {"nut": 3, "bolt": 2})
    found = find_normals(spec_of({"tiny": "0" * 64}), data=[url])
    assert found.class_numbers.tolist() == [0, 0, 1, 1, 1]
    assert "warning" not in capsys.readouterr().err
    with pytest.raises(UserError, match=f"--data {url}: the model has no class 'line3/bolt'; its classes are tiny/nut"):
        find_normals(spec_of({}, ("tiny/nut",)), data=[url])
    with pytest.raises(UserError, match="the model has more than one class 'line3/bolt'"):
        find_normals(spec_of({}, ("a/bolt", "b/bolt", "a/nut")), data=[url])


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Pictures of other sizes in a folder per class, one of them called as the model calls the class."""
    save_image(tmp_path / "photos" / "bolt" / "1.png", 1, 50)
    save_image(tmp_path / "photos" / "bolt" / "2.jpg", 2, 90)
    save_image(tmp_path / "photos" / "tiny" / "nut" / "1.png", 3, SIDE)
    return tmp_path / "photos"


def test_pictures_are_of_the_class_of_their_folder(photos: Path, trained: Any) -> None:
    found = find_normals(trained, sources=[str(photos)])
    assert found.class_numbers.tolist() == [0, 0, 1]
    assert [image.shape for image in pixels(found)] == [(3, SIDE, SIDE)] * 3
    assert list(found.origin) == [str(photos)]
    before = found.origin[str(photos)]
    save_image(photos / "bolt" / "3.png", 4)
    assert find_normals(trained, sources=[str(photos)]).origin[str(photos)] != before


def test_a_class_can_be_named_for_all_pictures(photos: Path, trained: Any) -> None:
    for name in ("tiny/washer", "washer"):
        found = find_normals(trained, sources=[str(photos)], class_name=name)
        assert found.class_numbers.tolist() == [2, 2, 2]
    with pytest.raises(UserError, match="--class: the model has no class 'gear'"):
        find_normals(trained, sources=[str(photos)], class_name="gear")


@pytest.mark.parametrize("place", ["gear/1.png", "1.png", "bolt/train/good/1.png", "bolt/test/hole/1.png"])
def test_pictures_of_no_class_are_named(photos: Path, trained: Any, place: str) -> None:
    save_image(photos / place, 5)
    with pytest.raises(UserError, match=rf"{place}: the model has no class '.*'; its classes are tiny/bolt, tiny/nut"):
        find_normals(trained, sources=[str(photos)])


def test_a_dataset_is_no_folder_of_pictures(tiny_url: str, trained: Any) -> None:
    with pytest.raises(UserError, match=f"--source {tiny_url}: a converted dataset; give it as --data"):
        find_normals(trained, sources=[tiny_url])


def test_datasets_and_pictures_together(tiny_url: str, photos: Path, trained: Any, tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    shutil.copytree(photos / "bolt", tmp_path / "more" / "washer")
    found = find_normals(trained, data=[tiny_url], sources=[str(photos), str(tmp_path / "more")], splits=["test"])
    assert found.class_numbers.tolist() == [0, 1, 2, 0, 0, 1, 2, 2]
    assert len(found.origin) == 3


def test_a_damaged_picture_is_told_and_not_read(photos: Path, trained: Any) -> None:
    (photos / "bolt" / "2.jpg").write_bytes(b"none")
    first, second, third = pixels(find_normals(trained, sources=[str(photos)]))
    assert isinstance(second, BadSample)
    assert "2.jpg" in str(second)
    assert str(second).endswith("replace or remove it.")
    assert isinstance(first, torch.Tensor)
    assert isinstance(third, torch.Tensor)
    assert np.unique(first.numpy()).size > 10
