"""The evaluation of one rank: scored images in, one mergeable state of bounded size, exact results out."""

import math
from dataclasses import dataclass, field

import numpy as np

from fmad_dist.errors import UserError
from fmad_dist.evaluation.histogram import MapPixels, PixelHistogram
from fmad_dist.evaluation.image_pixels import ImagePixels, image_pixels
from fmad_dist.evaluation.panels import Panel, PanelBoard, encode_image, encode_mask, small_map
from fmad_dist.evaluation.protocol import Protocol
from fmad_dist.evaluation.regions import Channel
from fmad_dist.evaluation.results import Results, ScoreRow


@dataclass(frozen=True, slots=True)
class ScoredImage:
    """One test image and its scores.

    `class_name` is `<dataset>/<class>`, `label` 0 normal or 1 anomalous, `anomaly_map` float32 [S, S] and `mask` bool
    [S, S] with S the protocol's map size, `image` uint8 [H, W, 3] for the report's panels. `channels` are the single
    defects of the mask where the benchmark annotates them (MVTec LOCO AD), `group` is the same for all images of one
    physical part where a benchmark has several views of it (Real-IAD).
    """

    sample_id: str
    class_name: str
    label: int
    defect_type: str
    image_score: float
    anomaly_map: np.ndarray
    mask: np.ndarray
    image: np.ndarray
    channels: tuple[Channel, ...] = ()
    group: str = ""


@dataclass(slots=True)
class ClassState:
    """What is kept of one class: image scores, a pixel histogram of its normal images and of every defect type, the
    pixels of every image in a few bins, a few panels."""

    max_bins: int
    histograms: dict[tuple[int, str], PixelHistogram] = field(default_factory=dict)  # by label and defect type
    scores: dict[str, ScoreRow] = field(default_factory=dict)
    pixels: dict[str, ImagePixels] = field(default_factory=dict)  # by sample id
    board: PanelBoard = field(default_factory=PanelBoard)
    num_empty_masks: int = 0
    num_channels: dict[str, int] = field(default_factory=dict)  # by defect type, where defects are annotated singly

    def merged_histogram(self, defect_type: str | None = None) -> PixelHistogram:
        """The pixels of all images, or of all normal images and those with one type of defect."""
        merged = PixelHistogram(self.max_bins)
        for label, kind in sorted(self.histograms):
            if label == 0 or defect_type in (None, kind):
                merged.merge(self.histograms[label, kind])
        return merged

    def kind(self, label: int, defect_type: str) -> PixelHistogram:
        """The histogram of a kind of images, created empty when it is new."""
        return self.histograms.setdefault((label, defect_type), PixelHistogram(self.max_bins))


class EvaluationState:
    """A metric state: `update` with images, `merge` with the states of other ranks, `compute` the results.

    Merging is integer addition and union, so any order, split and number of merges gives the same results and the same
    bytes. Memory per class: 6 to 32 bytes per occupied bin of each defect type, one row and about 3 KB per image and up
    to twelve small panels.
    """

    def __init__(self, protocol: Protocol) -> None:
        self.protocol = protocol
        self.classes: dict[str, ClassState] = {}
        self._class_of: dict[str, str] = {}
        self._current: ClassState | None = None

    def __len__(self) -> int:
        return len(self._class_of)

    @property
    def sample_ids(self) -> set[str]:
        """The ids that were scored; it must equal the manifest's test split."""
        return set(self._class_of)

    def class_state(self, class_name: str) -> ClassState:
        """The state of a class, created empty when it is new."""
        if class_name not in self.classes:
            self.classes[class_name] = ClassState(self.protocol.histogram_bins)
        return self.classes[class_name]

    def update(self, scored: ScoredImage) -> None:
        """Add one image.

        Raises:
            UserError: its score or map is not finite, its map or mask has the wrong shape or type, a normal image has a
                mask, a channel does not fit the mask, or its sample id was scored before. The state is unchanged then.
        """
        self._check(scored)
        state = self.class_state(scored.class_name)
        if self._current is not None and self._current is not state:
            for histogram in self._current.histograms.values():
                histogram.settle()  # only one class holds uncounted pixels
        self._current = state
        pixels = MapPixels.of(scored.anomaly_map, scored.mask, self.protocol.connectivity, scored.channels)
        state.kind(scored.label, scored.defect_type).count(pixels)
        state.pixels[scored.sample_id] = image_pixels(pixels)
        if scored.channels:
            before = state.num_channels.get(scored.defect_type, 0)
            state.num_channels[scored.defect_type] = before + len(scored.channels)
        state.num_empty_masks += int(scored.label == 1 and not scored.mask.any())
        score = float(scored.image_score)
        total = float(scored.anomaly_map.sum(dtype=np.float64)) if self.protocol.needs_map_sum else 0.0
        row = ScoreRow(
            scored.sample_id, scored.class_name, scored.label, scored.defect_type, score, scored.group, total
        )
        self.record(row)
        if state.board.wants(scored.sample_id, scored.label, score):
            state.board.add(_panel(scored))

    def record(self, row: ScoreRow) -> None:
        """Keep the image score of a sample. Raises UserError when it was scored before."""
        self._check_new(row.sample_id)
        self._class_of[row.sample_id] = row.class_name
        self.class_state(row.class_name).scores[row.sample_id] = row

    def merge(self, other: "EvaluationState") -> None:
        """Add what another rank scored; `other` keeps its content.

        Raises:
            UserError: the protocols differ or a sample was scored by both. This state is unchanged then.
        """
        if other.protocol != self.protocol:
            raise UserError("evaluation states of different protocols cannot be merged; use one config on every rank.")
        for sample_id in sorted(self._class_of.keys() & other._class_of.keys()):
            self._check_new(sample_id)
        for class_name, theirs in other.classes.items():
            ours = self.class_state(class_name)
            for (label, defect_type), histogram in theirs.histograms.items():
                ours.kind(label, defect_type).merge(histogram)
            for defect_type, count in theirs.num_channels.items():
                ours.num_channels[defect_type] = ours.num_channels.get(defect_type, 0) + count
            ours.scores |= theirs.scores
            ours.pixels |= theirs.pixels
            ours.board.merge(theirs.board)
            ours.num_empty_masks += theirs.num_empty_masks
        self._class_of |= other._class_of

    def compute(self) -> Results:
        """The metrics of every class, the mean per dataset and the mean over all classes.

        Raises:
            UserError: nothing was scored.
        """
        from fmad_dist.evaluation.compute import compute_results  # compute imports this module

        if not self.classes:
            raise UserError("evaluation: no image was scored; check that the manifest has a test split.")
        return compute_results(self.classes, self.protocol)

    def to_bytes(self) -> bytes:
        """The state for another rank; equal content gives equal bytes."""
        from fmad_dist.evaluation.wire import encode_state  # wire imports this module

        return encode_state(self)

    @staticmethod
    def from_bytes(data: bytes) -> "EvaluationState":
        """The state behind `to_bytes`. Raises UserError when the bytes are not one."""
        from fmad_dist.evaluation.wire import decode_state

        return decode_state(data)

    def _check_new(self, sample_id: str) -> None:
        if sample_id in self._class_of:
            raise UserError(f"{sample_id}: scored twice; every test image must belong to exactly one rank and batch.")

    def _check(self, scored: ScoredImage) -> None:
        self._check_new(scored.sample_id)
        who, shape = scored.sample_id, (self.protocol.map_size, self.protocol.map_size)
        if not math.isfinite(scored.image_score):
            raise UserError(f"{who}: its image score is {scored.image_score}; check the model for NaN or overflow.")
        if scored.anomaly_map.shape != shape or scored.mask.shape != shape:
            sizes = f"map {scored.anomaly_map.shape} and mask {scored.mask.shape}"
            raise UserError(
                f"{who}: {sizes} must both be {shape}, the protocol's map_size; resize them before scoring."
            )
        if scored.anomaly_map.dtype != np.float32 or scored.mask.dtype != np.bool_:
            kinds = f"map {scored.anomaly_map.dtype} and mask {scored.mask.dtype}"
            raise UserError(f"{who}: {kinds} must be float32 and bool; convert them before scoring.")
        if not np.isfinite(scored.anomaly_map).all():
            raise UserError(
                f"{who}: its anomaly map has values that are not finite; check the model for NaN or overflow."
            )
        for channel in scored.channels:
            inside = channel.mask.shape == shape and not (channel.mask & ~scored.mask).any()
            if not inside or not 1 <= channel.saturation <= channel.mask.sum():
                raise UserError(
                    f"{who}: a defect channel is empty, lies outside the mask or saturates beyond its area."
                )
        if scored.label not in (0, 1) or (scored.label == 0 and scored.mask.any()):
            raise UserError(f"{who}: label {scored.label} does not fit its mask; label 0 = empty mask, 1 = anomalous.")


def dataset_of(class_name: str) -> str:
    """The dataset in `<dataset>/<class>`."""
    return class_name.split("/", 1)[0]


def _panel(scored: ScoredImage) -> Panel:
    return Panel(
        sample_id=scored.sample_id,
        label=scored.label,
        defect_type=scored.defect_type,
        score=float(scored.image_score),
        image=encode_image(scored.image),
        mask=encode_mask(scored.mask),
        anomaly_map=small_map(scored.anomaly_map),
    )
