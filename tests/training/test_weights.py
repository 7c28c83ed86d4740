from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from fmad_dist.base.errors import UserError
from fmad_dist.training.weights import ShardedEma, fp32_partitions


def zero2(*weights: Tensor) -> SimpleNamespace:
    return SimpleNamespace(single_partition_of_fp32_groups=list(weights))


def test_partitions_of_every_stage_are_found() -> None:
    weight = torch.zeros(3)
    assert fp32_partitions(zero2(weight))[0] is weight
    assert fp32_partitions(SimpleNamespace(fp32_partitioned_groups_flat=[weight]))[0] is weight
    with pytest.raises(UserError, match=r"DeepSpeed \d.* has no single_partition_of_fp32_groups; .*known to work with"):
        fp32_partitions(SimpleNamespace())


def test_the_average_by_hand() -> None:
    weight = torch.tensor([10.0])
    ema = ShardedEma(zero2(weight), decay=0.5)
    weight.fill_(20.0)
    ema.update()  # decay min(0.5, 1 / 10)
    assert ema.average[0].item() == pytest.approx(0.1 * 10 + 0.9 * 20)
    ema.update()  # 2 / 11
    assert ema.average[0].item() == pytest.approx(19 * 2 / 11 + 20 * 9 / 11)
    ema.updates = 1000
    ema.update()
    assert ema.average[0].item() == pytest.approx(0.5 * (19 * 2 / 11 + 20 * 9 / 11) + 0.5 * 20)
    assert ema.updates == 1001


def test_decay_zero_is_the_newest_weight() -> None:
    weight = torch.tensor([1.0])
    ema = ShardedEma(zero2(weight), decay=0.0)
    weight.fill_(7.0)
    ema.update()
    assert ema.average[0].item() == 7.0


def test_weights_come_back_after_a_swap() -> None:
    weight = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    ema = ShardedEma(zero2(weight), decay=0.9)
    with torch.no_grad():
        weight.copy_(torch.tensor([5.0, 6.0]))
    with ema.swapped_in():
        assert weight.tolist() == [1.0, 2.0]
    assert weight.tolist() == [5.0, 6.0]
    with pytest.raises(RuntimeError, match="inside"), ema.swapped_in():
        raise RuntimeError("inside")
    assert weight.tolist() == [5.0, 6.0]
    assert ema.average[0].tolist() == [1.0, 2.0]


def test_the_average_can_be_set_from_the_weights() -> None:
    weight = torch.tensor([1.0])
    ema = ShardedEma(zero2(weight), decay=0.9)
    weight.fill_(4.0)
    ema.take_weights()
    assert ema.average[0].tolist() == [4.0]
    weight.fill_(9.0)
    assert ema.average[0].tolist() == [4.0]  # a copy
