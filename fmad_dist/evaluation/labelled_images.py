"""Test images with what is known about each, read in the shards and batches in which they are scored.

Where masks are single defects with the area that must be found (MVTec LOCO AD), they are measured at the source's size
or on the map.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Dataset

from fmad_dist.base.errors import UserError
from fmad_dist.config.run import ReadOptions
from fmad_dist.detector.detector import Detections
from fmad_dist.images.masks import mask_on_map
from fmad_dist.jobs.scoring import Shards, in_shards
from fmad_dist.metrics.regions import Channel, SingleDefects
from fmad_dist.metrics.state import ScoredImage
from fmad_dist.stream.batches import Failure, unless_failed, worker_loader
from fmad_dist.stream.dataset import Sample
from fmad_dist.stream.image_source import ImageSource
from fmad_dist.stream.manifest import DefectSaturation, Manifest
from fmad_dist.stream.mixture import Mixture
from fmad_dist.stream.reader import BadSample, SampleReader

BATCH = 8
PATIENCE_S = 300.0  # an evaluation waits this long for its storage


@dataclass(frozen=True, slots=True)
class LabelledBatch:
    """Consecutive test samples by global index with their pixels uint8 [B, 3, S, S], and the mask bool [M, M] and,
    where the dataset annotates them, the single defects of each."""

    rows: tuple[int, ...]
    images: torch.Tensor
    masks: tuple[np.ndarray, ...]
    defects: tuple[SingleDefects | None, ...]


class LabelledImages(Dataset):
    """Batches addressed by lists of global indices, at `image_size` with masks of `map_size`."""

    def __init__(self, mixture: Mixture, image_size: int, map_size: int) -> None:
        self.mixture = mixture
        self.source = ImageSource(mixture, image_size, ReadOptions(patience_s=PATIENCE_S))
        self.map_size = map_size

    def __getitem__(self, rows: Sequence[int]) -> LabelledBatch | Failure:
        try:
            found = self.source.decode(self.source.fetch(rows))
            bad = next((image for image in found if isinstance(image, BadSample)), None)
            if bad is not None:  # results without it would not be those of the benchmark
                raise bad
            images = torch.stack([image for image in found if not isinstance(image, BadSample)])
            masks, defects = zip(*(self._truth(row) for row in rows), strict=True)
            return LabelledBatch(tuple(rows), images, masks, defects)
        except UserError as error:
            return Failure(str(error))

    def read(self, batches: Sequence[Sequence[int]], workers: int = 0) -> Iterator[LabelledBatch]:
        """The batches in order, read ahead by `workers` processes.

        Raises:
            UserError: a test image cannot be read.
        """
        yield from unless_failed(worker_loader(self, workers, sampler=batches))

    def _truth(self, row: int) -> tuple[np.ndarray, SingleDefects | None]:
        dataset, position = self.mixture.locate(row)
        reader = self.source.readers[dataset.name]
        raw = reader.masks(position)
        singly = dataset.manifest.mask_semantics == "channel"
        defects = single_defects(reader, position, raw, self.map_size) if singly else None
        return mask_on_map(raw, self.map_size), defects


def shards_of_test_split(mixture: Mixture) -> Shards[int]:
    """The global indices of the test split in order: a function of the data alone."""
    return in_shards(mixture.rows("test").tolist(), BATCH)


def scored_images(mixture: Mixture, batch: LabelledBatch, found: Detections) -> Iterator[ScoredImage]:
    """What the detector found, image by image, with what is known about each."""
    scores, maps = found.scores.tolist(), found.maps.float().cpu().numpy()
    for position, row in enumerate(batch.rows):
        dataset, own_row = mixture.locate(row)
        sample = dataset.sample(own_row)
        yield ScoredImage(
            sample_id=sample.sample_id,
            class_name=f"{sample.dataset}/{sample.class_name}",
            label=sample.label,
            defect_type=sample.defect_type,
            image_score=scores[position],
            anomaly_map=maps[position],
            mask=batch.masks[position],
            image=batch.images[position].permute(1, 2, 0).numpy(),
            defects=batch.defects[position],
            group=sample.group,
        )


def single_defects(reader: SampleReader, row: int, raw_masks: Sequence[np.ndarray], map_size: int) -> SingleDefects:
    """The defects of one image of a dataset whose masks are single defects.

    Official where the masks are stored as published: at the size of the source image. Where only resized masks are
    stored (`raw_masks` [H, W]) it is approximated on the map: a saturation threshold in pixels of the source becomes
    the same share of the map, and a defect that has no pixel left there is left out, as it is from regions.

    Raises:
        UserError: the manifest has no saturation rule for a defect's id.
        BadSample: a mask is damaged.
    """
    dataset = reader.dataset
    sample = dataset.sample(row)
    height, width = source_size(sample)
    if dataset.stores_native_masks:
        masks = reader.native_masks(row)
        return SingleDefects(tuple(_channels(dataset.manifest, sample, masks, 1.0)), height, width, native=True)
    masks = [mask_on_map([raw], map_size) for raw in raw_masks]
    channels = _channels(dataset.manifest, sample, masks, map_size**2 / (height * width))
    return SingleDefects(tuple(channels), map_size, map_size, native=False)


def source_size(sample: Sample) -> tuple[int, int]:
    """Height and width of the image as published."""
    return sample.source_height or sample.height, sample.source_width or sample.width


def _channels(manifest: Manifest, sample: Sample, masks: Sequence[np.ndarray], scale: float) -> Iterator[Channel]:
    rules = {rule.pixel_value: rule for rule in manifest.saturation.get(sample.class_name, [])}
    for mask, ids in zip(masks, sample.mask_ids, strict=True):
        if ids[0] not in rules:
            where = f"{sample.dataset}: {sample.sample_id}"
            raise UserError(f"{where}: its defect id {ids[0]} has no saturation rule; convert the dataset again.")
        area = int(mask.sum())
        if area:
            yield Channel(mask, saturation_pixels(rules[ids[0]], area, scale))


def saturation_pixels(rule: DefectSaturation, area: int, scale: float) -> int:
    """Pixels of a mask that are a full score, in [1, area]: of the defect's `area` in the mask a share, or the rule's
    number of source pixels times `scale`, mask pixels per source pixel."""
    wanted = rule.saturation_threshold * (area if rule.relative_saturation else scale)
    return min(area, max(1, int(wanted)))
