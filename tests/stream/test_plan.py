import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmad_dist.base.errors import UserError
from fmad_dist.stream.plan import BatchLayout, StreamPlan
from fmad_dist.stream.training_stream import class_quotas

CLASS_SIZES = st.lists(st.integers(1, 40), min_size=1, max_size=6)
SEEDS = st.integers(0, 2**40)


def make_plan(
    sizes: list[int], seed: int = 0, temperature: float = 1.0, content: str = "content", first: int = 1000
) -> StreamPlan:
    """Rows that are neither contiguous nor grouped by class, so that positions and rows cannot be mixed up."""
    classes = np.repeat(np.arange(len(sizes)), sizes)
    classes = np.random.default_rng(0).permutation(classes)
    quotas = class_quotas(np.array(sizes), [f"toy/{number}" for number in range(len(sizes))], temperature)
    return StreamPlan(first + 3 * np.arange(len(classes)), classes, content, seed, quotas)


def appearances(plan: StreamPlan, order: np.ndarray) -> np.ndarray:
    """How often each of `plan.rows` is in `order`; everything in `order` must be one of them."""
    assert np.isin(order, plan.rows).all()
    return np.array([(order == row).sum() for row in plan.rows])


@given(CLASS_SIZES, SEEDS, st.integers(0, 1000))
def test_temperature_1_reads_every_sample_exactly_once_per_epoch(sizes: list[int], seed: int, epoch: int) -> None:
    plan = make_plan(sizes, seed)
    assert plan.epoch_size == sum(sizes)
    assert sorted(plan.epoch(epoch)) == sorted(plan.rows)


@given(CLASS_SIZES, SEEDS, st.floats(1.0, 50.0))
def test_an_epoch_keeps_the_quotas_and_spreads_them_evenly(sizes: list[int], seed: int, temperature: float) -> None:
    plan = make_plan(sizes, seed, temperature)
    order = plan.epoch(0)
    counts = appearances(plan, order)
    assert len(order) == plan.epoch_size
    for number, quota in enumerate(plan.appearances):
        own = counts[plan.classes == number]
        assert own.sum() == quota
        assert own.min() >= 1
        assert own.max() - own.min() <= 1


def test_quotas_by_hand() -> None:
    assert make_plan([100, 25, 4], temperature=1.0).appearances.tolist() == [100, 25, 4]
    assert make_plan([100, 25, 4], temperature=2.0).appearances.tolist() == [100, 50, 20]  # 100 * sqrt(n / 100)
    assert make_plan([100, 25, 4], temperature=1e9).appearances.tolist() == [100, 100, 100]


def test_the_samples_that_appear_more_often_take_turns() -> None:
    plan = make_plan([10, 7], temperature=1e9)  # 3 of the 7 appear twice in an epoch
    seven = plan.classes == 1
    first, *others = [appearances(plan, plan.epoch(number))[seven] for number in range(7)]
    assert sorted(first) == [1, 1, 1, 1, 2, 2, 2]
    assert any(counts.tolist() != first.tolist() for counts in others)
    assert (sum(others, first) == 10).all()  # 7 epochs x 10 appearances of 7 samples


@given(CLASS_SIZES, SEEDS, st.lists(st.integers(1, 60), min_size=6, max_size=6), st.integers(1, 6))
def test_samples_of_a_class_appear_equally_often_over_epochs(
    sizes: list[int], seed: int, quotas: list[int], num_epochs: int
) -> None:
    """For any quotas, also smaller than the class, and after every number of epochs, within one."""
    full = make_plan(sizes, seed)
    plan = StreamPlan(full.rows, full.classes, "content", seed, np.array(quotas[: len(sizes)]))
    counts = appearances(plan, np.concatenate([plan.epoch(number) for number in range(num_epochs)]))
    for number in range(len(sizes)):
        own = counts[plan.classes == number]
        assert own.sum() == num_epochs * quotas[number]
        assert own.max() - own.min() <= 1


@given(st.integers(1, 12), st.integers(1, 40), SEEDS, st.integers(0, 50))
def test_an_epoch_continues_the_rounds_of_its_class(size: int, quota: int, seed: int, epoch: int) -> None:
    """Against the definition, one appearance at a time."""
    plan = StreamPlan(1000 + 3 * np.arange(size), np.zeros(size, dtype=np.int64), "content", seed, np.array([quota]))
    rounds = {number: plan._round(0, plan.rows, number) for number in range((epoch + 1) * quota // size + 1)}
    expected = [rounds[k // size][k % size] for k in range(epoch * quota, (epoch + 1) * quota)]
    assert sorted(plan.epoch(epoch)) == sorted(expected)


@given(CLASS_SIZES, SEEDS, st.sampled_from([1, 2, 3, 5, 64]), st.integers(1, 3), st.integers(1, 3), st.integers(0, 30))
def test_resumed_on_other_ranks_nothing_is_lost_or_doubled(
    sizes: list[int], seed: int, world: int, micro: int, accumulation: int, stop: int
) -> None:
    """Some steps on one layout, the rest on another with the same global batch, make the uninterrupted sequence."""
    plan = make_plan(sizes, seed, 2.0)
    layouts = [
        BatchLayout.fit(world * micro * accumulation, micro, world),
        BatchLayout.fit(world * micro * accumulation, None, 1),
    ]
    read: dict[int, int] = {}
    for layout, steps in ((layouts[0], range(stop)), (layouts[1], range(stop, stop + 3))):
        for step in steps:
            for rank in range(layout.world_size):
                positions = layout.positions(step * layout.global_batch, rank).ravel()
                np.testing.assert_array_equal(layout.rank_of(positions), rank)
                assert not read.keys() & set(positions.tolist())
                read.update(zip(positions.tolist(), plan.at(positions).tolist(), strict=True))
    assert sorted(read) == list(range(len(read)))
    np.testing.assert_array_equal([read[position] for position in range(len(read))], plan.at(np.arange(len(read))))


@given(CLASS_SIZES, SEEDS, st.integers(0, 500), st.integers(1, 200), st.sampled_from([1.0, 2.0, 7.5]))
def test_the_stream_is_its_epochs_without_gap(
    sizes: list[int], seed: int, start: int, count: int, temperature: float
) -> None:
    plan = make_plan(sizes, seed, temperature)
    positions = np.arange(start, start + count)
    last = (start + count) // plan.epoch_size
    expected = np.concatenate([plan.epoch(number) for number in range(last + 1)])[positions]
    np.testing.assert_array_equal(plan.at(positions), expected)


@given(SEEDS)
def test_positions_may_be_asked_in_any_order_and_shape(seed: int) -> None:
    plan = make_plan([9, 4], seed)
    positions = np.random.default_rng(seed).integers(0, 5 * plan.epoch_size, (6, 7))
    one_by_one = [[make_plan([9, 4], seed).at(np.array([p]))[0] for p in row] for row in positions]
    np.testing.assert_array_equal(plan.at(positions), one_by_one)


def test_order_depends_on_seed_epoch_and_content_only() -> None:
    reference = make_plan([30, 20])
    order = reference.epoch(0)
    reference.epoch(5), reference.epoch(2)
    np.testing.assert_array_equal(reference.epoch(0), order)  # not on what was asked before
    np.testing.assert_array_equal(make_plan([30, 20]).epoch(0), order)
    for other in (reference.epoch(1), make_plan([30, 20], seed=1).epoch(0), make_plan([30, 20], content="x").epoch(0)):
        assert not np.array_equal(other, order)


def test_an_epoch_is_shuffled_across_classes() -> None:
    plan = make_plan([100, 100])
    class_of = dict(zip(plan.rows, plan.classes, strict=True))
    first_half = [class_of[row] for row in plan.epoch(0)[:100]]
    assert 30 < sum(first_half) < 70


@pytest.mark.parametrize(
    "other",
    [
        make_plan([5, 5], content="other"),
        make_plan([5, 5], seed=1),
        StreamPlan(make_plan([5, 5]).rows, make_plan([5, 5]).classes, "content", quotas=np.array([5, 6])),
        make_plan([5, 5], first=1001),
        make_plan([5, 6]),
        StreamPlan(make_plan([5, 5]).rows, np.arange(10) // 5, "content"),  # same class sizes, other members
    ],
    ids=["content", "seed", "quotas", "rows", "sizes", "classes"],
)
def test_digest_names_every_ingredient(other: StreamPlan) -> None:
    assert other.digest != make_plan([5, 5]).digest


def test_digest_is_stable() -> None:
    plan = make_plan([5, 5])
    before = plan.digest
    plan.epoch(3)
    assert plan.digest == before == make_plan([5, 5]).digest


def test_equal_digests_read_equal_sequences_for_any_integer_type() -> None:
    plan = make_plan([5, 5])
    narrow = StreamPlan(plan.rows.astype(np.int32), plan.classes.astype(np.int16), "content")
    assert narrow.digest == plan.digest
    np.testing.assert_array_equal(narrow.epoch(0), plan.epoch(0))


def test_a_class_number_without_samples_is_skipped() -> None:
    plan = StreamPlan(np.arange(6), np.array([0, 0, 0, 2, 2, 2]), "content", quotas=np.array([3, 7, 3]))
    assert plan.epoch_size == 6
    assert sorted(plan.epoch(0)) == list(range(6))


def test_a_million_samples() -> None:
    plan = make_plan([400_000, 300_000, 200_000, 100_000])
    positions = BatchLayout.fit(1024, None, 64).positions(976 * 1024, rank=63)  # straddles the first two epochs
    assert plan.epoch_size == 1_000_000
    assert len(plan.at(positions).ravel()) == 16
    assert len(np.unique(plan.epoch(0))) == 1_000_000


LAYOUTS = st.tuples(st.integers(1, 64), st.integers(1, 5), st.integers(1, 4))  # world size, micro batch, accumulation


@given(LAYOUTS, st.integers(0, 10**9))
def test_ranks_divide_a_step_completely_and_without_overlap(layout: tuple[int, int, int], step: int) -> None:
    world, micro, accumulation = layout
    total = world * micro * accumulation
    fitted = BatchLayout.fit(total, micro, world)
    assert fitted.accumulation == accumulation
    parts = [fitted.positions(step * total, rank) for rank in range(world)]
    assert all(part.shape == (accumulation, micro) for part in parts)
    in_reading_order = np.stack(parts, axis=1).ravel()  # round by round, rank by rank
    np.testing.assert_array_equal(in_reading_order, np.arange(step * total, (step + 1) * total))


@settings(max_examples=30)
@given(st.sampled_from([1, 2, 3, 4, 6, 12]), st.sampled_from([1, 2, 3, 4, 6, 12]), SEEDS)
def test_no_layout_changes_the_samples_of_a_step(world: int, micro: int, seed: int) -> None:
    if 12 % (world * micro):
        return
    plan = make_plan([11, 6], seed)  # 17 samples: every second step straddles two epochs
    layout = BatchLayout.fit(12, micro, world)
    for step in range(4):
        read = np.stack([layout.positions(12 * step, rank) for rank in range(world)], axis=1).ravel()
        np.testing.assert_array_equal(plan.at(read), plan.at(np.arange(12 * step, 12 * step + 12)))


def test_positions_by_hand() -> None:
    layout = BatchLayout.fit(8, 2, 2)
    assert layout.positions(0, 0).tolist() == [[0, 1], [4, 5]]
    assert layout.positions(8, 1).tolist() == [[10, 11], [14, 15]]


def test_batches_continue_where_a_resume_starts() -> None:
    layout = BatchLayout.fit(12, 2, 3)
    whole = [batch.tolist() for batch in layout.batches(1, range(0, 60, 12))]
    halves = [*layout.batches(1, range(0, 24, 12)), *layout.batches(1, range(24, 60, 12))]
    assert whole == [batch.tolist() for batch in halves]
    assert len(whole) == 5 * layout.accumulation


def test_64_ranks_share_a_class_of_54_images() -> None:
    plan = make_plan([54])
    layout = BatchLayout.fit(64, 1, 64)
    read = [layout.positions(64 * step, rank) for step in range(27) for rank in range(64)]  # 27 * 64 = 32 epochs
    counts = appearances(plan, plan.at(np.concatenate(read).ravel()))
    assert counts.tolist() == [32] * 54


@pytest.mark.parametrize(
    ("global_batch", "micro_batch", "world", "words"),
    [
        (10, None, 3, ["train.global_batch 10", "3 processes"]),
        (8, None, 64, ["train.global_batch 8", "64 processes"]),
        (12, 4, 2, ["train.global_batch 12", "6 samples each", "train.micro_batch 4"]),
        (12, 8, 2, ["train.micro_batch 8"]),
    ],
)
def test_uneven_batches_are_refused(global_batch: int, micro_batch: int | None, world: int, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        BatchLayout.fit(global_batch, micro_batch, world)
    assert all(word in str(caught.value) for word in words)


def test_the_micro_batch_is_derived() -> None:
    assert BatchLayout.fit(12, None, 4) == BatchLayout(global_batch=12, micro_batch=3, world_size=4)
