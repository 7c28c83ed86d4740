"""A conversion that is killed at any of its steps goes on later, and ends as if nothing had happened."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from data_tools.conversion import convert as convert_module
from data_tools.conversion.convert import convert
from data_tools.garbage import collect
from data_tools.lint import lint
from fmad_dist.base.errors import UserError
from fmad_dist.storage import Store

SHARD_MB = 0.012  # about two images of 40 px each


class Killed(BaseException):
    """Nothing may catch it, like a SIGKILL."""


class Saboteur:
    """Counts the writing operations of all stores and dies before, or just after, the one with a given number."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self.victim = -1
        self.after = False
        for name in ("write", "upload", "write_if", "remove_all"):
            monkeypatch.setattr(Store, name, self._watched(getattr(Store, name)))

    def _watched(self, operation: Any) -> Any:
        def watched(store: Store, *arguments: Any) -> Any:
            self.count += 1
            if self.count == self.victim and not self.after:
                raise Killed
            result = operation(store, *arguments)
            if self.count == self.victim:
                raise Killed
            return result

        return watched

    def arm(self, victim: int, after: bool) -> None:
        self.count, self.victim, self.after = 0, victim, after


def content(url: str) -> dict[str, bytes]:
    store = Store(url)
    return {name: store.read(name) for name in store.list()}


@pytest.mark.parametrize(("kind", "after"), [("local", False), ("memory", True)])
def test_killed_at_every_step(options, tmp_path, monkeypatch, kind, after):
    base = str(tmp_path) if kind == "local" else f"memory://{tmp_path.name}"
    saboteur = Saboteur(monkeypatch)
    reference = options(out=f"{base}/reference", shard_mb=2 * SHARD_MB)
    manifest = convert(reference).manifest
    num_steps = saboteur.count
    assert len(manifest.shards) > 4
    assert num_steps > 2 * len(manifest.shards)
    expected = content(reference.out)
    for step in range(1, num_steps + 1):
        disturbed = options(out=f"{base}/killed-{step}", shard_mb=2 * SHARD_MB)
        saboteur.arm(step, after)
        with pytest.raises(Killed):
            convert(disturbed)
        saboteur.arm(-1, False)
        report = convert(disturbed)
        assert report.manifest == manifest
        found = content(disturbed.out)
        if not report.written:  # killed when only the journal was left to remove
            collect(disturbed.out, timedelta(0))
            found = content(disturbed.out)
        assert found == expected
        assert report.num_sent <= len(manifest.shards) - report.num_resumed


def test_what_is_done_is_not_done_again(options, monkeypatch):
    saboteur = Saboteur(monkeypatch)
    saboteur.arm(2 * 4 + 1, after=False)  # four shards are stored and noted
    with pytest.raises(Killed):
        convert(options(shard_mb=SHARD_MB))
    rendered: list[str] = []
    plain = convert_module.render_in_order

    def counting(images: Any, *arguments: Any) -> Iterator[Any]:
        rendered.extend(image.sample_id for image in images)
        return plain(images, *arguments)

    monkeypatch.setattr(convert_module, "render_in_order", counting)
    report = convert(options(shard_mb=SHARD_MB))
    assert report.num_resumed == 4
    done = sum(shard.num_samples for shard in report.manifest.shards[:4])
    assert len(rendered) == report.manifest.index.num_samples - done
    assert report.num_sent == len(report.manifest.shards) - 4


def test_a_damaged_record_or_shard_is_made_again(options, tmp_path, monkeypatch):
    saboteur = Saboteur(monkeypatch)
    expected = convert(options(out=str(tmp_path / "reference"), shard_mb=SHARD_MB)).manifest
    for damage in ("journal/*/000002.parquet", f"{expected.shards[2].name}"):
        out = tmp_path / damage.replace("/", "-").replace("*", "x")
        saboteur.arm(2 * 4 + 1, after=False)
        with pytest.raises(Killed):
            convert(options(out=str(out), shard_mb=SHARD_MB))
        next(iter(out.glob(damage))).write_bytes(b"damaged")
        report = convert(options(out=str(out), shard_mb=SHARD_MB))
        assert report.num_resumed == 2
        assert report.manifest == expected
        assert lint(str(out)).num_errors == 0


def test_another_writer_was_faster(options, tmp_path, monkeypatch):
    """Its dataset stays whole, ours is refused, unless both are the same."""
    other = options(dataset="tiny", size=32)
    plain = convert_module._write_shards

    def interrupted(*arguments: Any) -> None:
        plain(*arguments)
        monkeypatch.setattr(convert_module, "_write_shards", plain)
        convert(interloper)

    interloper = other
    monkeypatch.setattr(convert_module, "_write_shards", interrupted)
    with pytest.raises(UserError, match="another conversion finished here first"):
        convert(options())
    report = lint(options().out)
    assert report.num_errors == 0
    assert not convert(other).written
    monkeypatch.setattr(convert_module, "_write_shards", interrupted)
    interloper = options(out=str(tmp_path / "same"))
    assert convert(interloper).manifest == convert(interloper).manifest
    assert lint(interloper.out).findings == ()


def test_a_vanished_shard_is_noticed_before_the_manifest_is_put(options, monkeypatch):
    plain = convert_module._write_shards

    def losing(uploader: Any, *arguments: Any) -> None:
        plain(uploader, *arguments)
        uploader.store.remove(uploader.done[0].shard.name)

    monkeypatch.setattr(convert_module, "_write_shards", losing)
    with pytest.raises(UserError, match=r"train-000000-.*vanished.*convert again"):
        convert(options())
    assert not Store(options().out).exists("manifest.json")
    monkeypatch.setattr(convert_module, "_write_shards", plain)
    assert convert(options()).written
    assert lint(options().out).findings == ()
