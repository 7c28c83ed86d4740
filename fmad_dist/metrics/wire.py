"""An evaluation state as bytes: safetensors arrays and a JSON header, equal bytes for equal states, without pickle."""

import json
from dataclasses import fields
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from fmad_dist.base.errors import UserError, first_line
from fmad_dist.config.protocol import Protocol
from fmad_dist.metrics.bootstrap import ImagePixels
from fmad_dist.metrics.histogram import Bins, PixelHistogram
from fmad_dist.metrics.panels import Panel
from fmad_dist.metrics.results import ScoreRow
from fmad_dist.metrics.state import ClassState, EvaluationState, Histograms

FORMAT = "fmad-evaluation/3"
HEADER = "header"


def encode_state(state: EvaluationState) -> bytes:
    """The bytes of a state; classes, images and histograms are in sorted order."""
    arrays: dict[str, np.ndarray] = {}
    classes = [_encode_class(name, state.classes[name], str(i), arrays) for i, name in enumerate(sorted(state.classes))]
    header = {"format": FORMAT, "protocol": state.protocol.model_dump(mode="json"), "classes": classes}
    arrays[HEADER] = np.frombuffer(json.dumps(header, sort_keys=True, separators=(",", ":")).encode(), dtype=np.uint8)
    return save(arrays)


def decode_state(data: bytes) -> EvaluationState:
    """The state that `encode_state` gave these bytes.

    Raises:
        UserError: the bytes are not a complete state of this format.
    """
    try:
        arrays = load(data)
        header = json.loads(arrays[HEADER].tobytes())
        if header["format"] != FORMAT:
            found = header["format"]
            raise UserError(f"evaluation state: format {found!r} is not {FORMAT!r}; use one version everywhere.")
        state = EvaluationState(Protocol.model_validate(header["protocol"]))
        for position, entry in enumerate(header["classes"]):
            _decode_class(entry, str(position), arrays, state)
    except (SafetensorError, KeyError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"evaluation state: the bytes are cut or not a state ({first_line(error)}).") from None
    return state


def _encode_class(name: str, state: ClassState, prefix: str, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    rows = sorted(state.scores.values())
    arrays[f"{prefix}.score"] = np.array([row.score for row in rows], dtype=np.float64)
    arrays |= _encode_pixels([state.pixels[row.sample_id] for row in rows], f"{prefix}.pixels")
    for i, panel in enumerate(state.board.panels.values()):
        arrays[f"{prefix}.panel{i}.map"] = panel.anomaly_map
        arrays[f"{prefix}.panel{i}.image"] = np.frombuffer(panel.image, dtype=np.uint8)
        arrays[f"{prefix}.panel{i}.mask"] = np.frombuffer(panel.mask, dtype=np.uint8)
    return {
        "name": name,
        "kinds": _encode_histograms(state.histograms, f"{prefix}.kind", arrays),
        "singly": _encode_histograms(state.singly, f"{prefix}.singly", arrays),
        "native": state.native,
        "num_empty_masks": state.num_empty_masks,
        "rows": [[row.sample_id, row.label, row.defect_type, row.group, row.map_sum] for row in rows],
        "panels": list(state.board.panels),
    }


def _decode_class(entry: dict[str, Any], prefix: str, arrays: dict[str, np.ndarray], state: EvaluationState) -> None:
    target = state.class_state(entry["name"])
    target.num_empty_masks = entry["num_empty_masks"]
    target.native = entry["native"]
    target.histograms = _decode_histograms(entry["kinds"], f"{prefix}.kind", arrays, target.max_bins)
    target.singly = _decode_histograms(entry["singly"], f"{prefix}.singly", arrays, target.max_bins)
    scores, pixels = arrays[f"{prefix}.score"].tolist(), _decode_pixels(f"{prefix}.pixels", arrays)
    for (sample_id, label, defect_type, *more), score, own in zip(entry["rows"], scores, pixels, strict=True):
        state.record(ScoreRow(sample_id, entry["name"], label, defect_type, score, *more))
        target.pixels[sample_id] = own
    for i, sample_id in enumerate(entry["panels"]):
        image, mask, small = (arrays[f"{prefix}.panel{i}.{part}"] for part in ("image", "mask", "map"))
        target.board.panels[sample_id] = Panel(target.scores[sample_id], image.tobytes(), mask.tobytes(), small)


def _encode_histograms(histograms: Histograms, prefix: str, arrays: dict[str, np.ndarray]) -> list[list[Any]]:
    """Label, defect type, shift and number of regions of each; its bins go to `arrays`."""
    found = []
    for i, (kind, histogram) in enumerate(sorted(histograms.items())):
        bins = histogram.bins
        arrays |= {f"{prefix}{i}.{column.name}": getattr(bins, column.name) for column in fields(Bins)}
        found.append([*kind, histogram.shift, histogram.num_regions])
    return found


def _decode_histograms(entry: list[list[Any]], prefix: str, arrays: dict[str, np.ndarray], max_bins: int) -> Histograms:
    found: Histograms = {}
    for i, (label, defect_type, shift, num_regions) in enumerate(entry):
        bins = Bins(**{column.name: arrays[f"{prefix}{i}.{column.name}"] for column in fields(Bins)})
        found[label, defect_type] = PixelHistogram.restore(max_bins, shift, num_regions, bins)
    return found


def _encode_pixels(images: list[ImagePixels], prefix: str) -> dict[str, np.ndarray]:
    """The columns of all images end to end, with the number of bins and of hit bins of each."""
    sizes = [[image.shift, image.bins.keys.size, image.bins.hit.size] for image in images]
    columns = {c.name: [getattr(image.bins, c.name) for image in images] for c in fields(Bins)}
    found = {f"{prefix}.{name}": np.concatenate(parts) for name, parts in columns.items() if parts}
    return found | {f"{prefix}.sizes": np.array(sizes, dtype=np.uint32).reshape(-1, 3)}


def _decode_pixels(prefix: str, arrays: dict[str, np.ndarray]) -> list[ImagePixels]:
    shifts, sizes, hits = arrays[f"{prefix}.sizes"].T.astype(np.int64)
    ends = {c.name: np.cumsum(sizes if c.name in ("keys", "normal") else hits)[:-1] for c in fields(Bins)}
    if not shifts.size:
        return []
    columns = [np.split(arrays[f"{prefix}.{name}"], ends[name]) for name in ends]
    return [ImagePixels(int(shift), Bins(*own)) for shift, *own in zip(shifts, *columns, strict=True)]
