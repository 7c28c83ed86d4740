"""Parts of a conversion, made by different jobs, are one dataset after sealing."""

from datetime import timedelta

import pytest
from typer.testing import CliRunner

from data_tools.conversion.array_parts import Part
from data_tools.conversion.convert import convert
from data_tools.conversion.sealing import seal_parts
from data_tools.garbage import collect
from data_tools.lint import lint
from fmad_dist.base.errors import UserError
from fmad_dist.cli.data import app
from fmad_dist.storage import Store
from fmad_dist.stream.dataset import load_dataset

LOCATIONS = ("shard", "image_offset", "mask_offset")


@pytest.mark.parametrize("total", [1, 3, 40])  # 40: more parts than images
def test_parts_make_the_whole(options, tmp_path, total):
    whole = convert(options(out=str(tmp_path / "whole"))).manifest
    out = str(tmp_path / "parts")
    order = [*range(2, total + 1), 1]  # any order
    for number in order:
        report = convert(options(out=out, part=Part(number, total), shard_mb=0.02))
        assert report.written
    if total > 1:
        assert not Store(out).exists("manifest.json")
        sealed, remarks = seal_parts(out)
        assert remarks.counts["pooled"] == 1
        assert Store(out).list("parts") == []
        assert sealed.shards[0].name.startswith(f"shards/train-p00{4 if total == 40 else 1}of")  # 1 to 3 are empty
    sealed = load_dataset(out).manifest
    assert sealed.classes == whole.classes
    assert lint(out).findings == ()
    ours, theirs = load_dataset(out), load_dataset(str(tmp_path / "whole"))
    kept = [name for name in ours.table.column_names if name not in LOCATIONS]
    assert ours.table.select(kept).equals(theirs.table.select(kept))
    if total > 1:  # the source digest is that of a whole conversion with the same options
        again = convert(options(out=out, shard_mb=0.02))
        assert not again.written
        assert again.manifest == sealed


def test_a_part_is_resumable_and_idempotent(options, tmp_path):
    first = convert(options(part=Part(2, 3)))
    before = sorted(Store(options().out).list())
    again = convert(options(part=Part(2, 3)))
    assert (first.written, again.written) == (True, False)
    assert sorted(Store(options().out).list()) == before
    assert "journal" not in {name.split("/")[0] for name in before}


def test_parts_read_only_their_own_files(options, tree):
    """The parts of an array may each see a copy of the source; a bad file stops its own part alone."""
    (tree / "bolt/train/good/000.png").write_bytes(b"not an image")
    with pytest.raises(UserError, match=r"bolt/train/good/000\.png"):
        convert(options(part=Part(1, 3)))
    assert convert(options(part=Part(2, 3))).written


def test_sealing_too_early_or_mixed_parts(options, tmp_path):
    out = options().out
    with pytest.raises(UserError, match="no parts to seal"):
        seal_parts(out)
    convert(options(part=Part(1, 3)))
    with pytest.raises(UserError, match=r"2 of 3 parts are missing \(2/3, 3/3\)"):
        seal_parts(out)
    convert(options(part=Part(2, 3)))
    convert(options(part=Part(3, 3), size=32))
    with pytest.raises(UserError, match="parts of different conversions"):
        seal_parts(out)
    assert not Store(out).exists("manifest.json")
    collect(out, timedelta(0))
    assert Store(out).list() == []


def test_sealing_does_not_replace_another_dataset(options):
    convert(options(dataset="other"))
    for number in (1, 2):
        convert(options(dataset="other", part=Part(number, 2)))
    for name in Store(options().out).list("parts"):
        assert name.endswith("of002.parquet")
    seal_parts(options().out)
    convert(options(dataset="third", overwrite=True))
    with pytest.raises(UserError, match="holds the dataset 'third'"):
        convert(options(part=Part(1, 2)))


@pytest.mark.parametrize("text", ["", "3", "0/3", "4/3", "1/0", "a/b", "1/1000", "-1/3"])
def test_bad_parts(text):
    with pytest.raises(UserError, match="--part"):
        Part.parse(text)


def test_commands(options, tree, tmp_path):
    run = CliRunner().invoke
    out = str(tmp_path / "out")
    arguments = ["convert", "--dataset", "tiny", "--source", str(tree), "--out", out, "--size", "40", "--workers", "1"]
    for number in (1, 2):
        output = run(app, [*arguments, "--part", f"{number}/2"]).output
        assert f"(part {number} of 2)" in output
        assert f"fmad data seal {out}" in output
    assert "nothing written" in run(app, [*arguments, "--part", "2/2"]).output
    assert "sealed 23 images of 3 classes in 4 shards" in run(app, ["seal", out]).output
    assert run(app, ["lint", out]).exit_code == 0
