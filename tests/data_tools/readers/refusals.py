"""Ways to spoil a fixture tree, and the refusal that must follow."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from data_tools.conversion.convert import Conversion, convert
from fmad_dist.base.errors import UserError
from tests.data_tools.official_trees import Converted


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def write_mask(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def values(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image)


def change_mask(path: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    write_mask(path, change(values(path)))


def with_second_value(mask: np.ndarray) -> np.ndarray:
    mask[0, 0] = 7
    return mask


def entry(path: Path, split: str, number: int, **changes: object) -> None:
    lists = json.loads(path.read_bytes())
    lists[split][number].update(changes)
    path.write_text(json.dumps(lists), encoding="utf-8")


def cloud(path: Path, points: np.ndarray) -> None:
    tifffile.imwrite(path, points, photometric="minisblack", planarconfig="contig")


def assert_sentences(error: UserError) -> None:
    """Every problem that the error tells is one line."""
    assert all("\n" not in str(problem) for problem in error.problems or (error,))


def assert_refused(
    converted: Callable[[str, str], Converted], folder: Path, case: str, spoil: Callable[[Path], object], message: str
) -> None:
    """A spoilt copy of the tree that `case` begins with (`layout: ...` or `layout/tree: ...`) is refused in
    sentences, and nothing is left at the target."""
    layout, _, name = case.split(": ")[0].partition("/")
    tree = folder / "tree"
    shutil.copytree(converted(layout, name or "official").source, tree)
    spoil(tree)
    with pytest.raises(UserError, match=message) as caught:
        convert(Conversion(layout=layout, dataset="tiny", source=tree, out=str(folder / "out"), size=32, num_workers=1))
    assert_sentences(caught.value)
    assert not (folder / "out" / "manifest.json").exists()
