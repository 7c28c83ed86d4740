"""The state: merging, serialising, refusing, undefined metrics, and the files it leads to."""

import math
from dataclasses import replace

import numpy as np
import pytest

from fmad_dist.base.errors import UserError
from fmad_dist.config.protocol import Protocol
from fmad_dist.metrics.regions import Channel, SingleDefects
from fmad_dist.metrics.state import EvaluationState
from fmad_dist.metrics.wire import encode_state
from tests.support.saturated_overlap import TYPES, images_of, native_images, random_case, scored
from tests.support.scored_images import PROTOCOL, MakeScored, state_of


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_name_the_sample(make_scored: MakeScored, value: float) -> None:
    state = EvaluationState(PROTOCOL)
    bad_map = np.zeros((8, 8), dtype=np.float32)
    bad_map[3, 3] = value
    for image in (make_scored("toy/a/test/7", image_score=value), make_scored("toy/a/test/7", anomaly_map=bad_map)):
        with pytest.raises(UserError, match=r"toy/a/test/7.*check the model"):
            state.update(image)
    assert len(state) == 0


def test_wrong_shapes_types_and_labels_are_refused(make_scored: MakeScored) -> None:
    state = EvaluationState(PROTOCOL)
    filled = np.ones((8, 8), dtype=bool)
    for changes, problem in [
        ({"anomaly_map": np.zeros((4, 8), dtype=np.float32)}, "map_size"),
        ({"anomaly_map": np.zeros((8, 8), dtype=np.float64)}, "float32 and bool"),
        ({"mask": filled.astype(np.uint8)}, "float32 and bool"),
        ({"mask": filled}, "label 0"),
    ]:
        with pytest.raises(UserError, match=problem):
            state.update(make_scored("x", **changes))
    assert len(state) == 0


def test_a_sample_scored_twice_is_refused(make_scored: MakeScored) -> None:
    state = state_of([make_scored("a"), make_scored("b", 1)])
    before = encode_state(state)
    with pytest.raises(UserError, match="b: scored twice"):
        state.update(make_scored("b", 1))
    with pytest.raises(UserError, match="b: scored twice"):
        state.merge(state_of([make_scored("b", 1), make_scored("c")]))
    assert encode_state(state) == before


def test_different_protocols_do_not_merge(make_scored: MakeScored) -> None:
    with pytest.raises(UserError, match="protocol"):
        state_of([make_scored("a")]).merge(EvaluationState(Protocol(map_size=8, fpr_limit=0.05)))


def test_a_defect_that_fits_no_image_is_refused() -> None:
    mask = np.zeros((16, 16), dtype=bool)
    mask[2, 2] = True
    state, good = EvaluationState(Protocol(map_size=16)), scored("x", np.zeros((16, 16)), [Channel(mask, 1)], TYPES[0])
    for channel in (
        Channel(np.zeros((16, 16), dtype=bool), 1),
        Channel(mask[1:], 1),
        Channel(mask, 2),
        Channel(mask, 0),
    ):
        with pytest.raises(UserError, match="x: a single defect is empty, of another size"):
            state.update(replace(good, defects=SingleDefects((channel,), 16, 16, False)))
    with pytest.raises(UserError, match="of a normal image"):
        state.update(replace(good, label=0, mask=np.zeros((16, 16), dtype=bool)))
    assert len(state) == 0


def test_a_class_is_measured_in_one_way() -> None:
    on_map, native = images_of(random_case(1))[1], native_images(1, map_size=16)[2]
    state, other = EvaluationState(Protocol(map_size=16)), EvaluationState(Protocol(map_size=16))
    state.update(on_map)
    for image in (native, replace(native, defects=None)):
        with pytest.raises(UserError, match="loco/a: some images have masks at the source's size and some not"):
            state.update(image)
    other.update(native)
    before = encode_state(state)
    with pytest.raises(UserError, match="loco/a: some images have masks"):
        state.merge(other)
    assert encode_state(state) == before
