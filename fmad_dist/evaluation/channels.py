"""Single defects of an image on the protocol's map, with the area that must be found (MVTec LOCO AD)."""

from collections.abc import Sequence

import numpy as np

from fmad_dist.errors import UserError
from fmad_dist.evaluation.protocol import mask_on_map
from fmad_dist.evaluation.regions import Channel
from fmad_dist.stream.manifest import DefectSaturation, Manifest, Sample


def channels_on_map(
    manifest: Manifest, sample: Sample, raw_masks: Sequence[np.ndarray], map_size: int
) -> tuple[Channel, ...]:
    """One channel per mask of a dataset whose masks are single defects; none for other datasets and normal images.

    A saturation threshold in pixels of the source image becomes the same share of the map. A defect that has no pixel
    left on the map is left out, as it is from regions.

    Raises:
        UserError: the manifest has no saturation rule for a defect's id.
    """
    if manifest.mask_semantics != "channel":
        return ()
    rules = {rule.pixel_value: rule for rule in manifest.saturation.get(sample.class_name, [])}
    source_pixels = (sample.source_width or sample.width) * (sample.source_height or sample.height)
    found = []
    for raw, ids in zip(raw_masks, sample.mask_ids, strict=True):
        if ids[0] not in rules:
            where = f"{sample.dataset}: {sample.sample_id}"
            raise UserError(f"{where}: its defect id {ids[0]} has no saturation rule; convert the dataset again.")
        mask = mask_on_map([raw], map_size)
        if mask.any():
            found.append(Channel(mask, saturation_pixels(rules[ids[0]], int(mask.sum()), map_size**2 / source_pixels)))
    return tuple(found)


def saturation_pixels(rule: DefectSaturation, area: int, scale: float) -> int:
    """Pixels of the map that are a full score, in [1, area]: of the defect's `area` on the map a share, or the rule's
    number of source pixels times `scale`, map pixels per source pixel."""
    wanted = rule.saturation_threshold * (area if rule.relative_saturation else scale)
    return min(area, max(1, int(wanted)))
