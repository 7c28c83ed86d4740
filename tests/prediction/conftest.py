"""A folder of images that nobody has labelled."""

from pathlib import Path

import pytest

from tests.prediction.scored import save


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Eleven readable images, more than one batch, and two files that are none."""
    folder = tmp_path / "source"
    for number in range(9):
        save(folder / f"{number}.png", number)
    save(folder / "below" / "deep.JPG", 20, (100, 80, 3))
    save(folder / "grey.tif", 21, (50, 70))
    (folder / "3-cut.png").write_bytes((folder / "3.png").read_bytes()[:300])
    (folder / "notes.txt").write_text("not an image")
    return folder
