"""How images are dealt."""

from hypothesis import given
from hypothesis import strategies as st

from fmad_dist.jobs import scoring
from fmad_dist.jobs.scoring import deal, in_shards


@given(count=st.integers(0, 5000), batch=st.integers(1, 64))
def test_every_image_is_in_one_batch_of_one_of_a_few_shards(count: int, batch: int) -> None:
    found = in_shards(range(count), batch)
    assert [image for shard in found for one in shard for image in one] == list(range(count))
    assert len(found) <= scoring.MAX_SHARDS
    assert all(len(one) == batch for shard in found for one in shard[:-1])
    assert len({len(shard) for shard in found[:-1]}) <= 1


@given(num_shards=st.integers(0, 300), size=st.integers(1, 40), done=st.frozensets(st.integers(0, 299)))
def test_every_shard_that_is_left_is_dealt_to_one_rank(num_shards: int, size: int, done: frozenset[int]) -> None:
    dealt = [deal(num_shards, done, rank, size) for rank in range(size)]
    assert sorted(number for own in dealt for number in own) == sorted(set(range(num_shards)) - done)
    assert max(map(len, dealt)) - min(map(len, dealt)) <= 1
