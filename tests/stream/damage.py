"""Stored images that a test damages."""

from pathlib import Path

from fmad_dist.stream.dataset import load_dataset


def shard_of(folder: Path, index: int) -> tuple[Path, int, int]:
    """The shard file of an image and where it lies in it."""
    sample = load_dataset(str(folder)).sample(index)
    return folder / sample.shard, sample.image.offset, sample.image.size


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)
