"""ZeRO's arithmetic: what is divided, what is not, and that what is proposed fits. benchmarks/training measures it."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fmad_dist.base.errors import UserError
from fmad_dist.config.files import parse_config
from fmad_dist.config.run import RunConfig
from fmad_dist.networks.cost import NetworkCost, network_cost
from fmad_dist.networks.dit import PRESETS, DiTSpec
from fmad_dist.stream.plan import BatchLayout
from fmad_dist.training.budget import Layout, checkpoint_bytes, layout_of, memory_budget, what_would_fit
from fmad_dist.training.gradients import BUCKET_ELEMENTS
from fmad_dist.training.host_memory import HostMemory, host_memory
from fmad_dist.training.preflight import forecast
from fmad_dist.training.throughput import find_accelerator

LARGE = DiTSpec(192, 16, *PRESETS["L"])
SMALL = DiTSpec(192, 16, *PRESETS["small"])
LAYOUT = Layout(zero_stage=2, processes=8, micro_batch=4, accumulation=1, checkpointing=False, dtype=torch.bfloat16)


def test_one_process_holds_everything() -> None:
    """bf16 mixed precision: 2 + 2 bytes of weights and gradients, 4 + 8 + 4 of masters, moments and average."""
    cost = network_cost(SMALL, torch.bfloat16)
    count = cost.num_parameters
    for stage in (1, 2, 3):
        budget = memory_budget(SMALL, replace(LAYOUT, zero_stage=stage, processes=1, micro_batch=64))
        assert (budget.weights, budget.optimizer) == (2 * count, 16 * count)
        assert budget.activations == 64 * cost.activation_bytes
        assert budget.total == 18 * count + budget.activations + budget.gradients + budget.buffers
    assert (budget.gradients, budget.buffers) == (2 * count, 2 * BUCKET_ELEMENTS)  # ZeRO-3 never gives them back
    assert checkpoint_bytes(network_cost(SMALL, torch.float32)) == 16 * count


@settings(max_examples=25, deadline=None)
@given(processes=st.sampled_from([2, 8, 64]), batch=st.integers(1, 64))
def test_higher_stages_and_more_processes_need_less(processes: int, batch: int) -> None:
    layouts = [replace(LAYOUT, zero_stage=stage, processes=processes, micro_batch=batch) for stage in (1, 2)]
    first, second = (memory_budget(LARGE, one) for one in layouts)
    assert second.total <= first.total
    assert memory_budget(LARGE, replace(layouts[1], processes=2 * processes)).total < second.total
    plain, checkpointed = (
        memory_budget(LARGE, replace(layouts[1], micro_batch=64, checkpointing=choice)) for choice in (False, True)
    )
    assert checkpointed.activations < plain.activations / 4


def test_the_largest_phase_counts() -> None:
    """Many images: activations beside the first bucket. One image: gradients beside the last one."""
    count = network_cost(LARGE, torch.bfloat16).num_parameters
    many, one = (memory_budget(LARGE, replace(LAYOUT, zero_stage=1, micro_batch=batch)) for batch in (64, 1))
    assert (many.gradients, many.buffers) == (0, 2 * BUCKET_ELEMENTS)
    assert (one.activations, one.gradients) == (0, 2 * count)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40))
def test_what_is_proposed_fits(gib: int) -> None:
    proposed = what_would_fit(LARGE, replace(LAYOUT, micro_batch=256, zero_stage=1), gib << 30)
    if proposed is None:
        assert memory_budget(LARGE, Layout(3, 8, 1, 1, True, torch.bfloat16)).total > gib << 30
    else:
        assert memory_budget(LARGE, proposed).total <= gib << 30


def test_activations_are_computed_again_where_they_do_not_fit() -> None:
    """The smaller GPU has no room for half of them. A setting decides before that, and a CPU keeps them."""
    batch = BatchLayout.fit(64, None, 1)
    plain = Layout(2, 1, 64, 1, False, torch.bfloat16)
    budget = memory_budget(LARGE, plain)
    enough, too_little = (budget.total + (4 << 30), budget.total - budget.activations // 2)

    def chosen(memory: int | None, setting: bool | None = None) -> bool:
        tree = {"data": {"manifests": ["somewhere"]}, "model": {"checkpointing": setting}}
        config = parse_config(tree | {"train": {"global_batch": 64, "zero_stage": 2}}, source="test")
        return layout_of(config, LARGE, batch, torch.bfloat16, memory).checkpointing

    assert [chosen(memory) for memory in (None, enough, too_little)] == [False, False, True]
    assert [chosen(memory, True) for memory in (None, enough)] == [True, True]
    assert not chosen(too_little, False)


def test_accelerators() -> None:
    names = {"NVIDIA H200": "H200", "NVIDIA H100 80GB HBM3": "H100", "h100": "H100", "NVIDIA L40S": "L40S"}
    names |= {"NVIDIA A100-SXM4-80GB": "A100-80", "NVIDIA A100-PCIE-40GB": "A100"}
    for name, expected in names.items():
        found = find_accelerator(name)
        assert found is not None
        assert found.name == expected
    assert find_accelerator("GeForce") is None


def test_a_forecast_says_everything_and_refuses_what_cannot_fit(tiny_url: str) -> None:
    tree = {
        "data": {"manifests": [tiny_url]},
        "features": {"image_size": 64},
        "model": {"preset": "L"},
        "train": {"global_batch": 4096, "steps": 1000},
    }
    found = forecast(parse_config(tree, "test"), nodes=8, gpus=8, gpu="H200", mfu=0.5)
    found.check()
    text = "\n".join(found.lines())
    assert "8 nodes x 8 H200, ZeRO-2, bfloat16" in text
    assert "memory of host" in text
    assert "4096 = 64 processes x 64 x 1 accumulated" in text
    expected = 0.5 * 989e12 * 64 / (3 * network_cost(found.spec, torch.bfloat16).forward_flops)
    assert found.images_per_s == pytest.approx(expected)
    assert not found.layout.checkpointing
    huge = parse_config(tree | {"model": {"preset": "G"}}, "test")
    chosen = {gpu: forecast(huge, 8, 8, gpu, mfu=0.5).layout.checkpointing for gpu in ("H200", "L4")}
    assert chosen == {"H200": False, "L4": True}
    kept = parse_config(tree | {"model": {"preset": "L", "checkpointing": False}}, "test")
    with pytest.raises(UserError, match=r"do not fit into 36.00 GiB of A100; train.zero_stage=2 train.micro_batch="):
        forecast(kept, nodes=1, gpus=4, gpu="A100", mfu=0.5).check()
    with pytest.raises(UserError, match="--gpu GeForce: not known; there is B200"):
        forecast(parse_config(tree, "test"), nodes=1, gpus=4, gpu="GeForce", mfu=0.5)


def test_the_hosts_memory_at_ten_million_images() -> None:
    """Below 2 GB a process, libraries and reader processes apart, and in proportion to images, not to processes."""
    cost = NetworkCost(10**8, 10**6, 10**9, 10**9)  # a hundred million parameters
    config, shape = RunConfig(), (192, 16, 16)

    def found(images: int, classes: int, processes: int) -> HostMemory:
        return host_memory(config, BatchLayout(512 * 16, 16, processes), cost, shape, images, classes)

    large = found(10_000_000, 5_000, 512)
    assert large.plan + large.sums + large.checkpoint < 2e9
    assert large.readers / config.data.workers < 1e9
    assert large.scorer < 2e9
    small = found(1_000, 15, 8)
    assert small.total < 1.6e9
    assert found(10_000_000, 5_000, 8).plan == large.plan
