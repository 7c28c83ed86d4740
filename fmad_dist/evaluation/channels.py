"""Single defects of an image with the area that must be found (MVTec LOCO AD), at the source's size or on the map."""

from collections.abc import Iterator, Sequence

import numpy as np

from fmad_dist.errors import UserError
from fmad_dist.evaluation.protocol import mask_on_map
from fmad_dist.evaluation.regions import Channel, SingleDefects
from fmad_dist.stream.dataset import Sample
from fmad_dist.stream.manifest import DefectSaturation, Manifest
from fmad_dist.stream.reader import SampleReader


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
