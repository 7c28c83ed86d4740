"""States as bytes: equal for equal content, whatever was merged; damaged ones are refused."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fmad_dist.base.errors import UserError
from fmad_dist.config.protocol import Protocol
from fmad_dist.metrics.compute import compute_results
from fmad_dist.metrics.state import EvaluationState, ScoredImage
from fmad_dist.metrics.wire import decode_state, encode_state
from tests.support.saturated_overlap import images_of, native_images, random_case
from tests.support.scored_images import PROTOCOL, state_of


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32 - 1), num_ranks=st.integers(1, 5))
def test_any_order_split_and_merge_gives_the_same_bytes(images: list[ScoredImage], seed: int, num_ranks: int) -> None:
    rng = np.random.default_rng(seed)
    owner = rng.integers(0, num_ranks, len(images))
    order = rng.permutation(len(images))
    ranks = [state_of([images[i] for i in order if owner[i] == rank]) for rank in range(num_ranks)]
    while len(ranks) > 1:
        sent = decode_state(encode_state(ranks.pop(int(rng.integers(len(ranks))))))
        ranks[int(rng.integers(len(ranks)))].merge(sent)
    whole = state_of(images)
    assert encode_state(ranks[0]) == encode_state(whole)
    assert compute_results(ranks[0]) == compute_results(whole)


def test_round_trip_keeps_everything(images: list[ScoredImage]) -> None:
    state = state_of(images)
    back = decode_state(encode_state(state))
    assert encode_state(back) == encode_state(state)
    assert back.sample_ids == state.sample_ids == {image.sample_id for image in images}
    assert len(decode_state(encode_state(EvaluationState(PROTOCOL)))) == 0


def test_a_cut_state_is_refused(images: list[ScoredImage]) -> None:
    with pytest.raises(UserError, match="evaluation state"):
        decode_state(encode_state(state_of(images))[:-40])


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**16), num_ranks=st.integers(1, 5), native=st.booleans())
def test_any_split_gives_the_same_bytes(seed: int, num_ranks: int, native: bool) -> None:
    rng = np.random.default_rng(seed)
    images = native_images(seed, map_size=16) if native else images_of(random_case(seed))
    protocol = Protocol(map_size=16, histogram_bins=1024)
    whole, ranks = EvaluationState(protocol), [EvaluationState(protocol) for _ in range(num_ranks)]
    for image in images:
        whole.update(image)
    for position in rng.permutation(len(images)):
        ranks[int(rng.integers(num_ranks))].update(images[position])
    merged = EvaluationState(protocol)
    for rank in ranks:
        merged.merge(decode_state(encode_state(rank)))
    assert encode_state(merged) == encode_state(whole)
    assert compute_results(merged) == compute_results(whole)
