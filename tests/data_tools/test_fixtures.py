"""Every official layout: fixture -> conversion -> the counts, pixels and facts that the fixture states."""

import json
from pathlib import Path

import numpy as np
import pytest
from official_trees import SIZE, TREES, convert_fixture, nearest
from PIL import Image
from typer.testing import CliRunner

from data_tools.cli import app
from data_tools.fixtures import fixtures, write_fixture
from data_tools.lint import lint
from data_tools.readers import readers
from data_tools.sharder import convert
from fmad_dist.errors import UserError

every_tree = pytest.mark.parametrize(("layout", "tree"), TREES)


def test_every_reader_has_a_fixture():
    assert set(fixtures) == set(readers) == {layout for layout, _ in TREES}


@every_tree
def test_counts_are_those_stated(converted, layout, tree):
    case = converted(layout, tree)
    manifest = case.report.manifest
    assert {name: counts.model_dump() for name, counts in manifest.classes.items()} == case.facts["classes"]
    assert manifest.index.num_samples == case.facts["num_images"] == len(case.samples)
    assert "CC0" in manifest.licence


@every_tree
def test_lint_is_clean(converted, layout, tree):
    assert lint(converted(layout, tree).options.out).findings == ()


@every_tree
def test_every_image_is_what_the_fixture_says(converted, layout, tree):
    case = converted(layout, tree)
    assert set(case.samples) == {fact["source"] for fact in case.facts["images"]}
    for fact in case.facts["images"]:
        sample = case.samples[fact["source"]]
        found = (sample.class_name, sample.split, sample.defect_type, sample.group, sample.view)
        assert found == tuple(fact[name] for name in ("class_name", "split", "defect", "group", "view"))
        assert sample.label == (fact["defect"] != "good") == bool(sample.masks)
        assert sample.sample_id.startswith(f"tiny/{sample.class_name}/{sample.split}/{sample.defect_type}/")
        assert (sample.xyz is not None) == bool(fact["xyz"])


@every_tree
def test_pixels_survive(converted, layout, tree):
    case = converted(layout, tree)
    verbatim = 0
    for fact in case.facts["images"]:
        sample = case.samples[fact["source"]]
        with Image.open(case.source / fact["source"]) as image:
            rgb = image.convert("RGB")
        verbatim += rgb.size == (SIZE, SIZE)
        expected = rgb if rgb.size == (SIZE, SIZE) else rgb.resize((SIZE, SIZE), Image.Resampling.LANCZOS)
        assert np.array_equal(case.stored_pixels(sample, sample.image), np.asarray(expected))
    assert verbatim or layout in ("visa", "realiad", "folder", "loco")


@every_tree
def test_masks_survive(converted, layout, tree):
    case = converted(layout, tree)
    checked = 0
    for fact in case.facts["images"]:
        sample = case.samples[fact["source"]]
        assert len(sample.masks) == len(fact["masks"])
        for span, mask in zip(sample.masks, fact["masks"], strict=True):
            marked = case.published(mask["file"]) != 0
            assert np.count_nonzero(marked) == mask["pixels"]
            if mask["pixels"] > 1:  # the one-pixel defect has its own test
                assert np.array_equal(case.stored_pixels(sample, span), nearest(marked) * np.uint8(255))
                checked += 1
    assert checked >= 2


@every_tree
def test_second_conversion_writes_nothing(converted, layout, tree):
    case = converted(layout, tree)
    out = Path(case.options.out)
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.rglob("*") if path.is_file()}
    again = convert(case.options)
    assert not again.written
    assert again.manifest == case.report.manifest
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("layout", sorted(fixtures))
def test_fixtures_are_the_same_every_time(tmp_path, layout):
    write_fixture(layout, tmp_path / "one")
    write_fixture(layout, tmp_path / "two")
    files = {path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file()}
    assert files == {path.relative_to(tmp_path / "two") for path in (tmp_path / "two").rglob("*") if path.is_file()}
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@every_tree
def test_traps_are_there(converted, layout, tree):
    case = converted(layout, tree)
    assert {"good", "Normal"} <= set(str(case.source.parent.name).split())
    for where in case.facts["traps"].values():
        assert (case.source / where).exists()
    assert any(not counts["test_anomalous"] for counts in case.facts["classes"].values())


def test_a_folder_in_use_is_kept(tmp_path):
    (tmp_path / "mine.txt").write_text("x", encoding="utf-8")
    with pytest.raises(UserError, match="is not empty"):
        write_fixture("visa", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    with pytest.raises(UserError, match="--layout lego"):
        write_fixture("lego", tmp_path / "new")


def test_command(tmp_path):
    run = CliRunner().invoke
    out = tmp_path / "visa"
    shown = run(app, ["fixtures", "--layout", "visa", "--out", str(out)])
    assert shown.exit_code == 0
    assert "--layout visa --dataset visa_converted" in shown.output
    assert set(json.loads((out / "expected.json").read_bytes())["trees"]) == {"official", "converted"}
    source = out / "good Normal" / "visa"
    arguments = ["convert", "--layout", "visa", "--dataset", "v", "--source", str(source), "--size", "32"]
    converted = run(app, [*arguments, "--workers", "1", "--out", str(tmp_path / "v")])
    assert "counts that differ from the official ones" in converted.output
    assert converted.exit_code == 0
    assert "SPot-the-Difference" in run(app, ["info", str(tmp_path / "v")]).output


def test_damaged_cloud_and_ids_are_found(tmp_path):
    case = convert_fixture(tmp_path, "mvtec3d", "official")
    sample = next(iter(case.samples.values()))
    shard = Path(case.options.out) / sample.shard
    data = bytearray(shard.read_bytes())
    data[sample.xyz.offset + sample.xyz.size - 1] ^= 1
    shard.write_bytes(data)
    assert any("xyz.npy: its bytes differ" in finding.message for finding in lint(case.options.out).findings)
