"""Protocols: named presets, what differs from them, and what has to be said about it."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from fmad_dist.base.errors import UserError
from fmad_dist.config.files import load_config
from fmad_dist.config.protocol import PRESETS, Protocol, named_protocol


def test_the_default_is_exact_and_says_what_was_changed() -> None:
    protocol = Protocol()
    assert (protocol.title, protocol.note, protocol.biased, protocol.estimated) == ("fmad-2026", "", False, set())
    assert Protocol(fpr_limit=0.05, blur_sigma=1).title == "fmad-2026 with blur_sigma=1.0, fpr_limit=0.05"
    assert Protocol(f1_levels=21).title == "fmad-2026 with f1_levels=21 (biased)"
    assert Protocol(f1_levels=21).note.startswith("Biased estimates")


def test_a_run_chooses_a_protocol_by_name(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("protocol: {name: ader}\n")
    assert load_config(tmp_path / "run.yaml").protocol == named_protocol("ader")
    changed = load_config(tmp_path / "run.yaml", ["protocol.blur_sigma=2"]).protocol
    assert (changed.auroc_strips, changed.title) == (50, "ader v1 with blur_sigma=2.0 (biased)")
    with pytest.raises(UserError, match=r"protocol.name: Input should be 'fmad-2026', 'ader'.*got 'adre'"):
        load_config(tmp_path / "run.yaml", ["protocol.name=adre"])
    with pytest.raises(UserError, match=f"protocol 'adre': unknown; choose one of {', '.join(PRESETS)}"):
        named_protocol("adre")


def test_protocol_refuses_unknown_fields() -> None:
    with pytest.raises(ValidationError, match="fpr_limits"):
        Protocol(fpr_limits=0.3)  # type: ignore[call-arg]
