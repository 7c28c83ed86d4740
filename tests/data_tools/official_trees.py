"""Fixture trees converted once, and their files decoded without any code of the converter."""

import io
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from data_tools.conversion.convert import Conversion, ConversionReport, convert
from data_tools.fixtures import write_fixture
from fmad_dist.storage import Store
from fmad_dist.stream.dataset import Dataset, Sample, Span, load_dataset

SIZE = 48  # of the stored rendition: some source images have it, most do not
TREES = [
    ("mvtec", "official"),
    ("mpdd", "official"),
    ("visa", "official"),
    ("visa", "converted"),
    ("loco", "official"),
    ("mvtec3d", "official"),
    ("realiad", "flat"),
    ("realiad", "nested"),
    ("folder", "csv"),
    ("folder", "tree"),
]


@dataclass
class Converted:
    """A fixture tree, what it should hold, and its conversion."""

    source: Path
    facts: dict
    options: Conversion
    report: ConversionReport

    @cached_property
    def dataset(self) -> Dataset:
        return load_dataset(self.options.out)

    @cached_property
    def samples(self) -> dict[str, Sample]:
        """By the path of the image below the tree."""
        sources = self.dataset.table.column("source").to_pylist()
        return {source: self.dataset.sample(row) for row, source in enumerate(sources)}

    def stored(self, sample: Sample, span: Span) -> bytes:
        return Store(self.dataset.url).read_range(sample.shard, span.offset, span.offset + span.size)

    def stored_pixels(self, sample: Sample, span: Span) -> np.ndarray:
        return np.asarray(Image.open(io.BytesIO(self.stored(sample, span))))

    def published(self, name: str) -> np.ndarray:
        path = self.source / name
        return tifffile.imread(path) if path.suffix == ".tiff" else np.asarray(Image.open(path))


def convert_fixture(folder: Path, layout: str, tree: str) -> Converted:
    source = write_fixture(layout, folder / "fixture")[tree]
    facts = json.loads((folder / "fixture" / "expected.json").read_text(encoding="utf-8"))["trees"][tree]
    options = Conversion(
        layout=layout, dataset="tiny", source=source, out=str(folder / "out"), size=SIZE, num_workers=1
    )
    return Converted(source, facts, options, convert(options))


def nearest(values: np.ndarray, size: int = SIZE) -> np.ndarray:
    """The source pixel that holds the centre of every cell."""
    rows, columns = ([int((cell + 0.5) * num / size) for cell in range(size)] for num in values.shape[:2])
    return values[rows][:, columns]
