"""The evaluation of one rank: scored images in, one mergeable state of bounded size, exact results out."""

import math
from dataclasses import dataclass, field

import numpy as np

from fmad_dist.base.errors import UserError
from fmad_dist.config.protocol import Protocol
from fmad_dist.metrics.bootstrap import ImagePixels, image_pixels
from fmad_dist.metrics.histogram import MapPixels, PixelHistogram
from fmad_dist.metrics.panels import Panel, PanelBoard, encode_image, encode_mask, small_map
from fmad_dist.metrics.regions import SingleDefects, at_size
from fmad_dist.metrics.results import ScoreRow


@dataclass(frozen=True, slots=True)
class ScoredImage:
    """One test image and its scores.

    `class_name` is `<dataset>/<class>`, `label` 0 normal or 1 anomalous, `anomaly_map` float32 [S, S] and `mask` bool
    [S, S] with S the protocol's map size, `image` uint8 [H, W, 3] for the report's panels. `defects` are the single
    defects where the benchmark annotates them (MVTec LOCO AD), for normal images too. `group` is the same for all
    images of one physical part where a benchmark has several views of it (Real-IAD).
    """

    sample_id: str
    class_name: str
    label: int
    defect_type: str
    image_score: float
    anomaly_map: np.ndarray
    mask: np.ndarray
    image: np.ndarray
    defects: SingleDefects | None = None
    group: str = ""


Histograms = dict[tuple[int, str], PixelHistogram]  # by label and defect type


@dataclass(slots=True)
class ClassState:
    """What is kept of one class: image scores, a pixel histogram of its normal images and of every defect type, the
    pixels of every image in a few bins, a few panels; where defects are annotated singly also the same histograms with
    those as regions, in `singly`.

    `native` says whether single defects are measured at the source's size (else on the map), None that they are not.
    """

    max_bins: int
    histograms: Histograms = field(default_factory=dict)
    singly: Histograms = field(default_factory=dict)
    native: bool | None = None
    scores: dict[str, ScoreRow] = field(default_factory=dict)
    pixels: dict[str, ImagePixels] = field(default_factory=dict)  # by sample id
    board: PanelBoard = field(default_factory=PanelBoard)
    num_empty_masks: int = 0

    def merged_histogram(self, defect_type: str | None = None, *, singly: bool = False) -> PixelHistogram:
        """The pixels of all images, or of all normal images and those with one type of defect; `singly` with single
        defects as regions."""
        merged, histograms = PixelHistogram(self.max_bins), self.singly if singly else self.histograms
        for label, kind in sorted(histograms):
            if label == 0 or defect_type in (None, kind):
                merged.merge(histograms[label, kind])
        return merged

    def add(self, scored: ScoredImage, connectivity: int) -> None:
        """Count the pixels of an image."""
        kind = (scored.label, scored.defect_type)
        pixels = MapPixels.of(scored.anomaly_map, scored.mask, connectivity)
        self._kind(self.histograms, kind).add(pixels)
        self.pixels[scored.sample_id] = image_pixels(pixels)
        if scored.defects is not None:
            stretched = at_size(scored.anomaly_map, scored.defects.height, scored.defects.width)
            self._kind(self.singly, kind).add(MapPixels.of_defects(stretched, scored.defects))
            self.native = scored.defects.native

    def merge(self, other: "ClassState") -> None:
        """Add another part of the class, which keeps its content."""
        for ours, theirs in ((self.histograms, other.histograms), (self.singly, other.singly)):
            for kind, histogram in theirs.items():
                self._kind(ours, kind).merge(histogram)
        self.native = other.native if self.native is None else self.native
        self.scores |= other.scores
        self.pixels |= other.pixels
        self.board.merge(other.board)
        self.num_empty_masks += other.num_empty_masks

    def settle(self) -> None:
        """Count the pixels that are still held in memory."""
        for histogram in (*self.histograms.values(), *self.singly.values()):
            histogram.settle()

    def _kind(self, histograms: Histograms, kind: tuple[int, str]) -> PixelHistogram:
        return histograms.setdefault(kind, PixelHistogram(self.max_bins))


class EvaluationState:
    """A metric state: `update` with images, `merge` with the states of other ranks.

    `compute_results` makes results of it, `encode_state` bytes.

    Merging is integer addition and union, so any order, split and number of merges gives the same results and the same
    bytes. Memory per class: 6 to 24 bytes per occupied bin of each defect type, twice that where defects are annotated
    singly, one row and about 2 KB per image and a few small panels.
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
                mask, a single defect is empty or has the wrong shape, single defects are measured at another size
                than those of its class, or its sample id was scored before. The state is unchanged then.
        """
        self._check(scored)
        state = self.class_state(scored.class_name)
        if self._current is not None and self._current is not state:
            self._current.settle()  # only one class holds uncounted pixels
        self._current = state
        state.add(scored, self.protocol.connectivity)
        state.num_empty_masks += int(scored.label == 1 and not scored.mask.any())
        score = float(scored.image_score)
        total = float(scored.anomaly_map.sum(dtype=np.float64)) if self.protocol.needs_map_sum else 0.0
        kind = (scored.sample_id, scored.class_name, scored.label, scored.defect_type)
        row = ScoreRow(*kind, score, scored.group, total)
        self.record(row)
        if state.board.wants(row):
            pictures = encode_image(scored.image), encode_mask(scored.mask), small_map(scored.anomaly_map)
            state.board.add(Panel(row, *pictures))

    def record(self, row: ScoreRow) -> None:
        """Keep the image score of a sample; one that was scored before is refused (UserError)."""
        self._check_new(row.sample_id)
        self._class_of[row.sample_id] = row.class_name
        self.class_state(row.class_name).scores[row.sample_id] = row

    def merge(self, other: "EvaluationState") -> None:
        """Add what another rank scored; `other` keeps its content.

        Raises:
            UserError: the protocols differ, single defects were measured at different sizes, or a sample was scored by
                both. This state is unchanged then.
        """
        if other.protocol != self.protocol:
            raise UserError("evaluation states of different protocols cannot be merged; use one config on every rank.")
        for sample_id in sorted(self._class_of.keys() & other._class_of.keys()):
            self._check_new(sample_id)
        for class_name, theirs in other.classes.items():
            if theirs.scores:
                self._check_measured(class_name, theirs.native)
        for class_name, theirs in other.classes.items():
            self.class_state(class_name).merge(theirs)
        self._class_of |= other._class_of

    def _check_new(self, sample_id: str) -> None:
        if sample_id in self._class_of:
            raise UserError(f"{sample_id}: scored twice; every test image must belong to exactly one rank and batch.")

    def _check(self, scored: ScoredImage) -> None:
        self._check_new(scored.sample_id)
        problem = _problem(scored, (self.protocol.map_size, self.protocol.map_size))
        if problem:
            raise UserError(f"{scored.sample_id}: {problem}")
        self._check_measured(scored.class_name, None if scored.defects is None else scored.defects.native)

    def _check_measured(self, class_name: str, native: bool | None) -> None:
        """Refuse to measure single defects of some images of a class on the map and of others at the source's size."""
        found = self.classes.get(class_name)
        if found is not None and found.scores and found.native is not native:
            problem = "some images have masks at the source's size and some not; convert it again."
            raise UserError(f"{class_name}: {problem}")


def _problem(scored: ScoredImage, size: tuple[int, int]) -> str:
    """What is wrong with an image whose map must have this size, and how to mend it; empty if nothing is."""
    found, mask, defects = scored.anomaly_map, scored.mask, scored.defects
    if not math.isfinite(scored.image_score):
        return f"its image score is {scored.image_score}; check the model for NaN or overflow."
    if found.shape != size or mask.shape != size:
        sizes = f"map {found.shape} and mask {mask.shape}"
        return f"{sizes} must both be {size}, the protocol's map_size; resize them before scoring."
    if found.dtype != np.float32 or mask.dtype != np.bool_:
        return f"map {found.dtype} and mask {mask.dtype} must be float32 and bool; convert them before scoring."
    if not np.isfinite(found).all():
        return "its anomaly map has values that are not finite; check the model for NaN or overflow."
    if scored.label not in (0, 1) or (scored.label == 0 and mask.any()):
        return f"label {scored.label} does not fit its mask; label 0 = empty mask, 1 = anomalous."
    for channel in defects.channels if defects else ():
        shaped = defects is not None and channel.mask.shape == (defects.height, defects.width)
        if not shaped or scored.label == 0 or not 1 <= channel.saturation <= channel.mask.sum():
            wrong = "a single defect is empty, of another size than its image, of a normal image or saturates beyond"
            return f"{wrong} its area; convert the dataset again."
    return ""


def dataset_of(class_name: str) -> str:
    """The dataset in `<dataset>/<class>`."""
    return class_name.split("/", 1)[0]
