"""Targets that cannot be written are refused before any work."""

import pytest

from data_tools.conversion.convert import convert
from fmad_dist.base.errors import UserError


def test_target_is_a_file(options, tmp_path):
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(UserError, match="a file where the output folder should be"):
        convert(options(out=str(tmp_path / "file" / "out")))


def test_target_without_permission(options, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(UserError, match="no permission to write"):
        convert(options())
