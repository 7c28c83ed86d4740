from collections.abc import Callable
from pathlib import Path

import pytest
from small_trees import SIDE, make_tree

from data_tools.sharder import Conversion

Options = Callable[..., Conversion]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return make_tree(tmp_path)


@pytest.fixture
def options(tree: Path, tmp_path: Path) -> Options:
    """Conversion options for the small tree, in this process unless told otherwise."""

    def build(**changes: object) -> Conversion:
        defaults: dict[str, object] = {
            "layout": "mvtec",
            "dataset": "tiny",
            "source": tree,
            "out": str(tmp_path / "out"),
            "size": SIDE,
            "num_workers": 1,
        }
        return Conversion(**{**defaults, **changes})  # type: ignore[arg-type]

    return build
