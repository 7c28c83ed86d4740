import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from data_tools.conversion.convert import convert
from data_tools.lint import lint
from fmad_dist.base.errors import UserError
from fmad_dist.cli.data import app
from fmad_dist.stream.dataset import Dataset, load_dataset
from tests.data_tools.small_trees import noise, save, spot


@pytest.fixture
def out(options) -> Path:
    convert(options())
    return Path(options().out)


def shard_of(out: Path, split: str) -> Path:
    return next((out / "shards").glob(f"{split}-*.tar"))


def messages(out: Path, level: str) -> str:
    return "\n".join(f"{found.where}: {found.message}" for found in lint(str(out)).findings if found.level == level)


def test_clean(out):
    report = lint(str(out))
    assert (report.num_samples, report.num_shards, report.findings) == (23, 2, ())


def test_truncated_shard(out):
    path = shard_of(out, "test")
    path.write_bytes(path.read_bytes()[:3000])
    assert "3000 bytes, the manifest states" in messages(out, "error")


def test_missing_shard(out):
    shard_of(out, "test").unlink()
    assert "not found" in messages(out, "error")


def test_flipped_byte_names_the_sample(out):
    sample = next(s for s in map(load_dataset(str(out)).sample, range(23)) if s.masks)
    path = out / sample.shard
    data = bytearray(path.read_bytes())
    data[sample.image.offset + sample.image.size // 2] ^= 1
    path.write_bytes(data)
    found = messages(out, "error")
    assert "SHA-256 differs" in found
    assert f"{sample.sample_id}" in found
    assert "its bytes differ from the index" in found


def test_changed_index(out):
    path = next(out.glob("index-*.parquet"))
    table = pq.read_table(path)
    pq.write_table(table.slice(1), path)
    assert "index was truncated or changed" in messages(out, "error")


def test_edited_manifest(out):
    path = out / "manifest.json"
    path.write_text(path.read_text(encoding="utf-8").replace("CC0", "MIT"), encoding="utf-8")
    assert "digest does not match" in messages(out, "error")


def test_training_image_in_the_test_set_is_a_warning(options, tree):
    save(tree / "nut/test/good/copy.png", noise(300))
    convert(options())
    assert "copy: exactly the training image tiny/nut/train/good/000" in messages(Path(options().out), "warning")
    assert lint(options().out).num_errors == 0


def test_orphan_shard_is_a_warning(out):
    (out / "shards" / "train-000009-feed.tar").write_bytes(b"x")
    assert "train-000009-feed.tar: not named by the manifest" in messages(out, "warning")


def test_nothing_to_lint(tmp_path):
    with pytest.raises(UserError, match="convert a dataset to this URL first"):
        lint(str(tmp_path))


def test_commands(options, tree, tmp_path):
    run = CliRunner().invoke
    out = str(tmp_path / "out")
    arguments = ["convert", "--dataset", "tiny", "--source", str(tree), "--out", out, "--size", "40", "--workers", "1"]
    assert "converted 23 images of 3 classes to 2 shards" in run(app, arguments).output
    assert "nothing written" in run(app, arguments).output
    info = run(app, ["info", out]).output
    assert "licensed under CC0" in info
    assert "bent 1, speck 1" in info
    assert run(app, ["lint", out]).exit_code == 0
    sheet = tmp_path / "sheets" / "sheet.png"
    assert run(app, ["preview", out, "--out", str(sheet), "--num", "2"]).exit_code == 0
    assert Image.open(io.BytesIO(sheet.read_bytes())).size == (2 * 196 + 4, 6 * 212 + 4)
    assert len(np.unique(np.asarray(Image.open(sheet)))) > 100
    shard = shard_of(Path(out), "train")
    shard.write_bytes(shard.read_bytes()[:-2000])
    assert run(app, ["lint", out]).exit_code == 1


@pytest.mark.parametrize(
    ("layout", "changes", "message"),
    [
        ("visa", {"mask_semantics": "binary"}, "mask ids (1, 3) do not fit binary masks"),
        ("mvtec", {"mask_semantics": "class_id"}, "mask ids () do not fit class_id masks"),
        ("loco", {"saturation": {}}, "mask ids (255,), (254,) do not fit channel masks"),
    ],
)
def test_ids_that_the_manifest_does_not_explain(converted, monkeypatch, layout, changes, message):
    dataset = converted(layout).dataset
    other = Dataset(dataset.url, dataset.manifest.model_copy(update=changes), dataset.table)
    monkeypatch.setattr("data_tools.lint.load_dataset", lambda url: other)
    assert message in messages(Path(dataset.url), "error")


def test_doubtful_files_are_warnings(options, tree):
    save(tree / "bolt/ground_truth/hole/000_mask.png", 255 - spot())
    save(tree / "odd/train/good/12bit.png", np.arange(1600, dtype=np.uint16).reshape(40, 40))
    for rendition, expected in (("resized", 1), ("both", 2)):
        out = f"{options().out}-{rendition}"
        convert(options(out=out, rendition=rendition))
        report = lint(out)
        assert report.num_errors == 0
        said = [finding.message for finding in report.findings if finding.level == "warning"]
        assert len(said) == expected
        assert said[0].startswith("1 mask marking more than half of the picture")
