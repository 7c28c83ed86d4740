from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from data_tools.conversion.convert import Conversion
from tests.data_tools.official_trees import Converted, convert_fixture
from tests.data_tools.small_trees import SIDE, make_tree

Options = Callable[..., Conversion]


@pytest.fixture(scope="session")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Converted]:
    """Fixture trees, each converted once for all tests; tests must not change them."""

    @cache
    def build(layout: str, tree: str = "official") -> Converted:
        return convert_fixture(tmp_path_factory.mktemp(f"{layout}-{tree}"), layout, tree)

    return build


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
