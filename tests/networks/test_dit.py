import pytest
import torch
from torch import Tensor

from fmad_dist.config.run import SkipName
from fmad_dist.networks.dit import PRESETS, DiT, DiTSpec, TimeEmbedding, sincos_positions

SPEC = DiTSpec(channels=6, grid=4, width=32, depth=2, heads=4, num_classes=3)


def randomised(spec: DiTSpec = SPEC, checkpointing: bool = False) -> DiT:
    """A network away from its zero start; every call gives the same weights."""
    network = DiT(spec, checkpointing)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return network


def inputs(batch: int = 3, spec: DiTSpec = SPEC) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, spec.channels, spec.grid, spec.grid, generator=generator)
    return x, torch.rand(batch, generator=generator)


def test_the_velocity_starts_at_zero() -> None:
    x, t = inputs()
    for labels in (None, torch.tensor([0, 1, 2])):
        assert torch.equal(DiT(SPEC)(x, t, labels), torch.zeros_like(x))


@pytest.mark.parametrize(("channels", "grid", "classes"), [(1, 2, 0), (5, 3, 2), (192, 8, 0)])
def test_the_shape_is_kept(channels: int, grid: int, classes: int) -> None:
    spec = DiTSpec(channels, grid, width=16, depth=1, heads=2, num_classes=classes)
    x, t = inputs(2, spec)
    assert DiT(spec)(x, t).shape == x.shape


@pytest.mark.parametrize(("preset", "millions"), [("B", 130), ("L", 458), ("H", 951), ("G", 1220)])
def test_presets_have_the_published_sizes(preset: str, millions: int) -> None:
    with torch.device("meta"):
        network = DiT(DiTSpec(272, 16, *PRESETS[preset], num_classes=15))
    count = sum(parameter.numel() for parameter in network.parameters())
    assert count / 1e6 == pytest.approx(millions, rel=0.02)


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_can_be_built(preset: str) -> None:
    spec = DiTSpec(8, 4, *PRESETS[preset])
    assert spec.width % spec.heads == 0
    assert spec.width % 4 == 0  # two axes, sine and cosine each
    with torch.device("meta"):
        assert len(DiT(spec).blocks) == spec.depth


def test_no_label_is_the_unknown_label() -> None:
    network = randomised()
    x, t = inputs()
    unknown = torch.full((3,), SPEC.num_classes)
    assert torch.equal(network(x, t), network(x, t, unknown))
    assert not torch.allclose(network(x, t), network(x, t, torch.tensor([0, 1, 2])))


def test_a_network_without_classes_has_no_label_input() -> None:
    network = randomised(DiTSpec(6, 4, 32, 1, 4))
    x, t = inputs()
    assert network.label is None
    assert torch.equal(network(x, t), network(x, t, torch.tensor([0, 1, 2])))


def test_every_label_and_time_counts() -> None:
    network = randomised()
    x, t = inputs()
    by_label = [network(x, t, torch.full((3,), label)) for label in range(4)]
    assert all(not torch.allclose(by_label[i], by_label[j]) for i in range(4) for j in range(i))
    assert not torch.allclose(network(x, t), network(x, t + 0.001))


def test_images_of_a_batch_do_not_touch_each_other() -> None:
    network = randomised()
    x, t = inputs(4)
    alone = torch.cat([network(x[i : i + 1], t[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(network(x, t), alone)


def trained(steps: int) -> DiT:
    torch.manual_seed(0)
    network = DiT(SPEC)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    x, t = inputs(8)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (network(x, t, torch.arange(8) % 4) - x.flip(-1)).square().mean()  # wants the mirrored token
        loss.backward()
        optimizer.step()
    return network


def test_training_opens_the_path_between_tokens() -> None:
    """adaLN-Zero starts every block as identity; head, gates and attention must wake up one after the other."""
    network = trained(4)
    x, t = inputs(1)
    for row, column in ((0, 0), (1, 2), (3, 3)):
        changed = x.clone()
        changed[0, :, row, column] += 1.0
        difference = (network(changed, t) - network(x, t)).abs().amax(dim=1)[0].detach()
        assert (difference > 1e-6).all()


def test_a_task_between_tokens_is_learned() -> None:
    x, t = inputs(8)
    network = trained(100)
    with torch.no_grad():
        loss = (network(x, t, torch.arange(8) % 4) - x.flip(-1)).square().mean()
    assert loss < 0.2  # the answer zero has 1


def test_every_parameter_learns() -> None:
    network = randomised()
    x, t = inputs(4)
    network(x, t, torch.tensor([0, 1, 2, 3])).square().mean().backward()
    idle = [name for name, parameter in network.named_parameters() if not parameter.grad.abs().sum() > 0]  # type: ignore[union-attr]
    assert idle == []


def test_checkpointing_changes_no_gradient() -> None:
    x, t = inputs()
    gradients = []
    for checkpointing in (False, True):
        network = randomised(checkpointing=checkpointing).train()
        network(x, t, torch.tensor([0, 1, 3])).square().sum().backward()
        gradients.append({name: parameter.grad for name, parameter in network.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


def test_a_moved_token_is_another_token() -> None:
    """Without positions, a permutation of the tokens would only permute the answer."""
    network = randomised()
    x, t = inputs()
    assert not torch.allclose(network(x.flip(-1), t).flip(-1), network(x, t), atol=1e-3)
    assert not torch.allclose(network(x.transpose(2, 3), t).transpose(2, 3), network(x, t), atol=1e-3)


@pytest.mark.parametrize(("grid", "width"), [(2, 16), (4, 32), (16, 192), (32, 768)])
def test_positions_are_distinct_and_bounded(grid: int, width: int) -> None:
    positions = sincos_positions(grid, width)
    assert positions.shape == (grid * grid, width)
    assert positions.abs().max() <= 1.0
    distances = torch.cdist(positions[:64], positions)
    assert (distances < 0.1).sum() == len(distances)  # each is near itself alone


def test_positions_by_hand() -> None:
    positions = sincos_positions(2, 8).view(2, 2, 8)  # rates 1 and 1/100
    sin, cos = torch.sin(torch.tensor([1.0, 0.01])), torch.cos(torch.tensor([1.0, 0.01]))
    there, origin = torch.cat([sin, cos]), torch.tensor([0.0, 0.0, 1.0, 1.0])
    torch.testing.assert_close(positions[1, 0], torch.cat([there, origin]))
    torch.testing.assert_close(positions[0, 1], torch.cat([origin, there]))


def test_bfloat16_runs_and_stays_near_full_precision() -> None:
    network, x, t = randomised(), *inputs()
    full = network(x, t)
    half = network.bfloat16()(x.bfloat16(), t)
    assert half.dtype == torch.bfloat16
    assert (half.float() - full).norm() / full.norm() < 0.05


def test_times_keep_full_precision_in_a_bfloat16_network() -> None:
    """The waves reach 1000 radians: rates rounded to 8 bits would shift them by more than one radian, and a network
    trained like that would meet other times once it is deployed in float32."""
    embedding = TimeEmbedding(8)
    t = torch.linspace(0, 1, 50)
    torch.nn.init.eye_(embedding.hidden.weight)
    expected = embedding(t, torch.float32)
    found = embedding.bfloat16()(t, torch.bfloat16)
    torch.testing.assert_close(found.float(), expected, atol=0.02, rtol=0.02)


@pytest.mark.parametrize("t", [0.0, 0.3, 0.5, 1.0])
def test_the_gaussian_skip_starts_at_the_exact_field_of_unit_gaussian_data(t: float) -> None:
    x = torch.randn(2, 3, 4, 4)
    network = DiT(DiTSpec(channels=3, grid=4, width=16, depth=1, heads=2, patch=2, skip="gaussian"))
    # x_t = t x + (1 - t) e, both N(0, 1): E[x - e | x_t] = Cov(x - e, x_t) / Var(x_t) x_t
    exact = (t - (1 - t)) / (t**2 + (1 - t) ** 2) * x
    torch.testing.assert_close(network(x, torch.full((2,), t)), exact)


@pytest.mark.parametrize("skip", ["learned", "gaussian"])
def test_the_skip_learns_an_answer_in_proportion_to_the_input(skip: SkipName) -> None:
    torch.manual_seed(0)
    network = DiT(DiTSpec(channels=4, grid=2, width=16, depth=1, heads=2, skip=skip))
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    at_the_data = torch.ones(64)  # of the forward path, where the field is (1 + a) x
    for _ in range(400):
        x = torch.randn(64, 4, 2, 2) * torch.rand(64, 1, 1, 1) * 3
        loss = (network(x, at_the_data) - 1.5 * x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    x = torch.randn(64, 4, 2, 2)
    with torch.no_grad():
        coefficient = (network(5 * x, at_the_data) * x).sum() / (5 * x * x).sum()
    assert abs(float(coefficient) - 1.5) < 0.05  # at a norm beyond the training's


def test_patches_see_their_own_pixels() -> None:
    """Without blocks, a patch's answer depends on its own pixels alone, and shapes come back."""
    network = DiT(DiTSpec(channels=3, grid=8, width=32, depth=0, heads=2, patch=4))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    x = torch.randn(1, 3, 8, 8)
    changed = x.clone()
    changed[:, :, 5, 2] += 1.0
    difference = (network(x, torch.ones(1)) - network(changed, torch.ones(1))).abs().sum(1)[0]
    assert network(x, torch.ones(1)).shape == x.shape
    assert (difference[4:, :4] > 0).all()
    difference[4:, :4] = 0
    assert difference.max() < 1e-5
