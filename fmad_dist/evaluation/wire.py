"""An evaluation state as bytes: one safetensors blob of arrays and a JSON header, canonical, without pickle."""

import json
from dataclasses import fields
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from fmad_dist.errors import UserError, first_line
from fmad_dist.evaluation.histogram import Bins, PixelHistogram
from fmad_dist.evaluation.image_pixels import ImagePixels
from fmad_dist.evaluation.panels import Panel, PanelBoard
from fmad_dist.evaluation.protocol import Protocol
from fmad_dist.evaluation.results import ScoreRow
from fmad_dist.evaluation.state import ClassState, EvaluationState, Histograms

FORMAT = "fmad-evaluation/3"
HEADER = "header"


def encode_state(state: EvaluationState) -> bytes:
    """Everything in sorted order."""
    arrays: dict[str, np.ndarray] = {}
    classes = [_encode_class(name, state.classes[name], str(i), arrays) for i, name in enumerate(sorted(state.classes))]
    header = {"format": FORMAT, "protocol": state.protocol.model_dump(mode="json"), "classes": classes}
    arrays[HEADER] = np.frombuffer(json.dumps(header, sort_keys=True, separators=(",", ":")).encode(), dtype=np.uint8)
    return save(arrays)


def decode_state(data: bytes) -> EvaluationState:
    """Raises UserError when the bytes are not a complete state of this format."""
    try:
        arrays = load(data)
        header = json.loads(arrays[HEADER].tobytes())
        if header["format"] != FORMAT:
            raise UserError(
                f"evaluation state: format {header['format']!r} is not {FORMAT!r}; use one version everywhere."
            )
        state = EvaluationState(Protocol.model_validate(header["protocol"]))
        for position, entry in enumerate(header["classes"]):
            _decode_class(entry, str(position), arrays, state)
    except (SafetensorError, KeyError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"evaluation state: the bytes are cut or not a state ({first_line(error)}).") from None
    return state


def _encode_class(name: str, state: ClassState, place: str, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    rows = sorted(state.scores.values())
    arrays[f"{place}.score"] = np.array([row.score for row in rows], dtype=np.float64)
    arrays |= _encode_pixels([state.pixels[row.sample_id] for row in rows], f"{place}.pixels")
    panels = list(state.board.panels.values())
    for i, panel in enumerate(panels):
        arrays[f"{place}.panel{i}.map"] = panel.anomaly_map
        arrays[f"{place}.panel{i}.image"] = np.frombuffer(panel.image, dtype=np.uint8)
        arrays[f"{place}.panel{i}.mask"] = np.frombuffer(panel.mask, dtype=np.uint8)
    return {
        "name": name,
        "kinds": _encode_histograms(state.histograms, f"{place}.kind", arrays),
        "singly": _encode_histograms(state.singly, f"{place}.singly", arrays),
        "native": state.native,
        "num_empty_masks": state.num_empty_masks,
        "rows": [[row.sample_id, row.label, row.defect_type, row.group, row.map_sum] for row in rows],
        "panels": [panel.sample_id for panel in panels],
    }


def _decode_class(entry: dict[str, Any], place: str, arrays: dict[str, np.ndarray], state: EvaluationState) -> None:
    target = state.class_state(entry["name"])
    target.num_empty_masks = entry["num_empty_masks"]
    target.native = entry["native"]
    target.histograms = _decode_histograms(entry["kinds"], f"{place}.kind", arrays, target.max_bins)
    target.singly = _decode_histograms(entry["singly"], f"{place}.singly", arrays, target.max_bins)
    scores, pixels = arrays[f"{place}.score"].tolist(), _decode_pixels(f"{place}.pixels", arrays)
    for (sample_id, label, defect_type, *more), score, own in zip(entry["rows"], scores, pixels, strict=True):
        state.record(ScoreRow(sample_id, entry["name"], label, defect_type, score, *more))
        target.pixels[sample_id] = own
    rows = [target.scores[sample_id] for sample_id in entry["panels"]]
    target.board = PanelBoard(_decode_panel(row, f"{place}.panel{i}", arrays) for i, row in enumerate(rows))


def _encode_histograms(histograms: Histograms, place: str, arrays: dict[str, np.ndarray]) -> list[list[Any]]:
    """Label, defect type, shift and number of regions of each; its bins go to `arrays`."""
    found = []
    for i, (kind, histogram) in enumerate(sorted(histograms.items())):
        bins = histogram.bins
        arrays |= {f"{place}{i}.{column.name}": getattr(bins, column.name) for column in fields(Bins)}
        found.append([*kind, histogram.shift, histogram.num_regions])
    return found


def _decode_histograms(entry: list[list[Any]], place: str, arrays: dict[str, np.ndarray], max_bins: int) -> Histograms:
    found: Histograms = {}
    for i, (label, defect_type, shift, num_regions) in enumerate(entry):
        bins = Bins(**{column.name: arrays[f"{place}{i}.{column.name}"] for column in fields(Bins)})
        found[label, defect_type] = PixelHistogram.restore(max_bins, shift, num_regions, bins)
    return found


def _encode_pixels(images: list[ImagePixels], place: str) -> dict[str, np.ndarray]:
    """The columns of all images end to end, with the number of bins and of hit bins of each."""
    sizes = [[image.shift, image.bins.keys.size, image.bins.hit.size] for image in images]
    columns = {c.name: [getattr(image.bins, c.name) for image in images] for c in fields(Bins)}
    return {f"{place}.sizes": np.array(sizes, dtype=np.uint32).reshape(-1, 3)} | {
        f"{place}.{name}": np.concatenate(parts) for name, parts in columns.items() if parts
    }


def _decode_pixels(place: str, arrays: dict[str, np.ndarray]) -> list[ImagePixels]:
    shifts, sizes, hits = arrays[f"{place}.sizes"].T.astype(np.int64)
    ends = {c.name: np.cumsum(sizes if c.name in ("keys", "normal") else hits)[:-1] for c in fields(Bins)}
    if not shifts.size:
        return []
    columns = [np.split(arrays[f"{place}.{name}"], ends[name]) for name in ends]
    return [ImagePixels(int(shift), Bins(*own)) for shift, *own in zip(shifts, *columns, strict=True)]


def _decode_panel(row: ScoreRow, place: str, arrays: dict[str, np.ndarray]) -> Panel:
    image, mask = arrays[f"{place}.image"].tobytes(), arrays[f"{place}.mask"].tobytes()
    known = (row.sample_id, row.label, row.defect_type, row.score, row.map_sum)
    return Panel(*known, image, mask, arrays[f"{place}.map"])
