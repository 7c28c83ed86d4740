"""What all readers refuse."""

import pytest

from data_tools.conversion.convert import Conversion, convert
from fmad_dist.base.errors import UserError


@pytest.mark.parametrize("layout", ["visa", "loco", "mvtec3d", "mpdd", "realiad", "folder"])
def test_another_layout(tmp_path, layout):
    (tmp_path / "other" / "pictures").mkdir(parents=True)
    with pytest.raises(UserError, match=r"expected .*found pictures"):
        convert(
            Conversion(
                layout=layout, dataset="tiny", source=tmp_path / "other", out=str(tmp_path / "out"), num_workers=1
            )
        )
