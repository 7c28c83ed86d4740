"""Every scorer against the closed-form fields of Gaussian data, and the rules about what may be combined."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fmad_dist.base.errors import UserError
from fmad_dist.comparison.choice import choose, every_scorer
from fmad_dist.config.protocol import Protocol
from fmad_dist.config.run import ObjectiveConfig
from fmad_dist.flow.paths import PATHS
from fmad_dist.flow.solvers import Field
from fmad_dist.scoring.ddim import DDIMInversion
from fmad_dist.scoring.density import Density
from fmad_dist.scoring.endpoint import Endpoint, EndpointConfig
from fmad_dist.scoring.fusion import Fusion, FusionConfig, fit_statistics
from fmad_dist.scoring.interface import PartStatistics, ScoringMethod, Trained, build_scorer
from fmad_dist.scoring.inversion import Inversion
from fmad_dist.scoring.mismatch import Mismatch, MismatchConfig, paper_times
from fmad_dist.scoring.reconstruction import Reconstruction, ReconstructionConfig
from fmad_dist.scoring.residual import Residual
from tests.support.toy_fields import TRAINED, GaussianField, Network, Oracle, features

EVERY = every_scorer()


class ReversedGaussian(nn.Module):
    """v_rev(x, t) = (t - (1 - t) s^2) / ((1 - t)^2 s^2 + t^2) x."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.variance = scale**2

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        t = t.view(-1, 1, 1, 1)
        return (t - (1 - t) * self.variance) / ((1 - t) ** 2 * self.variance + t**2) * x


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_a_reversed_model_scores_as_a_forward_one(scale: float) -> None:
    x, keys = features(scale=scale), range(4)
    field = Field(ReversedGaussian(scale), PATHS["reversed"])
    for scorer in (
        Inversion(5),
        Reconstruction(0.5, 2, 3),
        Endpoint(2),
        Mismatch(2, paper_times(3)),
        Density(3, 2, 45),
    ):
        torch.testing.assert_close(scorer(field, x, keys), scorer(GaussianField(scale), x, keys), rtol=1e-4, atol=1e-4)


def test_the_endpoint_of_gaussian_data_is_blind_and_says_zero() -> None:
    """v_fwd(x, 1) = x whatever the data's scale: the trivial field of the theory."""
    x = features()
    torch.testing.assert_close(Endpoint()(GaussianField(0.5), x, range(4)), torch.zeros(4, 3, 3))
    torch.testing.assert_close(Residual(0.0)(GaussianField(0.5), x, range(4)), torch.zeros(4, 3, 3))


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_endpoint_steps_are_the_euler_loop(steps: int) -> None:
    x, network = features(), Network()
    torch.testing.assert_close(2 * Endpoint(steps)(network, x, range(4)), Inversion(steps)(network, x, range(4)))
    if steps == 1:
        z = x - network(x, torch.ones(4))
        torch.testing.assert_close(Endpoint()(network, x, range(4)), z.square().mean(1) / 2)
        torch.testing.assert_close(Residual(0.0)(network, x, range(4)), z.square().mean(1))


def test_the_residual_removes_the_well_of_any_strength() -> None:
    x = features()
    for strength in (0.0, 0.4, 1.0):
        scores = Residual(strength)(lambda x, t, a=strength: (1 + a) * x + 0.5, x, range(4))
        torch.testing.assert_close(scores, torch.full((4, 3, 3), 0.25 / (1 + strength) ** 2))


def test_an_oracle_has_no_mismatch() -> None:
    x = features()
    for aggregate in ("min", "quantile", "mean"):
        scores = Mismatch(3, paper_times(4), aggregate)(Oracle(x), x, range(4))  # type: ignore[arg-type]
        torch.testing.assert_close(scores, torch.zeros(4, 3, 3), atol=1e-9, rtol=0)


def test_mismatch_of_gaussian_data_by_formula() -> None:
    """(v - (x - e))^2 with the closed-form v, at one time and draw; and r = (x_hat - x)^2 / (1 - t)^2."""
    x, scale, t = features(), 0.5, 0.25
    scorer = Mismatch(1, [t], seed=3)
    noise = scorer._noise(x, range(4), 0)
    x_t = t * x + (1 - t) * noise
    v = GaussianField(scale)(x_t, torch.full((4,), t))
    expected = (v - (x - noise)).square().sum(1)
    torch.testing.assert_close(scorer(GaussianField(scale), x, range(4)), t**2 * expected)
    torch.testing.assert_close((x_t + (1 - t) * v - x).square().sum(1) / (1 - t) ** 2, expected)


@given(st.integers(2, 6), st.integers(1, 4), st.integers(0, 50))
def test_quantiles_are_ordered(noises: int, times: int, seed: int) -> None:
    x, network = features(2), Network()

    def score(aggregate: str, quantile: float = 0.0) -> Tensor:
        return Mismatch(noises, paper_times(times), aggregate, quantile, seed=seed)(network, x, [1, 2])  # type: ignore[arg-type]

    low, p10, p30, mean = score("min"), score("quantile", 0.1), score("quantile", 0.3), score("mean")
    assert (low <= p10).all()
    assert (p10 <= p30).all()
    assert (low <= mean).all()
    torch.testing.assert_close(score("quantile", 0.0), low)


def test_one_draw_makes_all_aggregates_equal() -> None:
    x, network = features(), Network()
    found = [Mismatch(1, paper_times(3), how)(network, x, range(4)) for how in ("min", "quantile", "mean")]  # type: ignore[arg-type]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_ddim_inversion_of_gaussian_data_is_its_noise() -> None:
    """e_hat = sigma x_t / (alpha^2 s^2 + sigma^2) leads to x sqrt(alpha_1^2 s^2 + sigma_1^2) / s."""
    path, scale, x = PATHS["vp"], 0.5, features(scale=0.5)

    def noise(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (part.view(-1, 1, 1, 1) for part in path.coefficients(t))
        return sigma * x / (alpha**2 * scale**2 + sigma**2)

    errors = [
        (DDIMInversion(n, path)(noise, x, range(4)) - (x / scale).square().mean(1)).abs().max() for n in (10, 500)
    ]
    assert errors[1] < 0.05 < errors[0]


def test_inverting_and_rebuilding_is_solver_error_alone() -> None:
    x = features(scale=0.5)
    errors = [
        Reconstruction(0.5, 1, steps, start="invert")(GaussianField(0.5), x, range(4)).max() for steps in (2, 10, 50)
    ]
    assert errors[2] < errors[1] / 10 < errors[0] / 100


@pytest.mark.parametrize("config", [c for c in EVERY if not c.needs_normals], ids=lambda config: config.title)
def test_neither_batch_nor_order_changes_a_bit(config: ScoringMethod) -> None:
    path = "vp" if config.name == "ddim" else "forward"
    scorer = build_scorer(config, Trained(ObjectiveConfig(path=path), 0.0, (5, 3, 3), 2, seed=4))  # type: ignore[arg-type]
    field = Field(Plain(), PATHS[path])  # type: ignore[index]
    x, keys, order = features(6), [11, 5, 2**61, 0, 8, 3], [3, 0, 5, 2, 4, 1]
    whole = scorer(field, x, keys)
    assert torch.equal(scorer(field, x[order], [keys[i] for i in order]), whole[order])
    assert torch.equal(torch.cat([scorer(field, x[i : i + 1], keys[i : i + 1]) for i in range(6)]), whole)


class Plain(nn.Module):
    """The test network as a module."""

    def __init__(self) -> None:
        super().__init__()
        self.network = Network()

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.network(x, t)


def test_fusion_is_the_mean_of_z_scores() -> None:
    x, network = features(6), Network()
    parts = [Inversion(2), Endpoint()]
    fusion = Fusion(parts)
    with pytest.raises(UserError, match="never calibrated"):
        fusion(network, x, range(6))
    sums = fusion.sums(network, x, range(6)).tolist()
    fusion = fusion.with_statistics(fit_statistics(sums, locations=9))
    singles = torch.stack([part(network, x, range(6)) for part in parts])
    for known, single in zip(fusion.statistics, singles, strict=True):
        assert known.mean == pytest.approx(single.mean().item(), rel=1e-5)
        assert known.std == pytest.approx(single.std(correction=0).item(), rel=1e-5)
    scaled = [(s - known.mean) / known.std for s, known in zip(singles, fusion.statistics, strict=True)]
    torch.testing.assert_close(fusion(network, x, range(6)), sum(scaled) / 2)
    assert fit_statistics(sums[::-1], 9) == tuple(fusion.statistics)
    assert PartStatistics(0.0, 1.0) != fusion.statistics[0]


COMBINATIONS = [
    *(("forward", "independent"), ("reversed", "independent"), ("vp", "independent")),
    *(("reversed", "wt_token"), ("reversed", "wt_soft")),
]


def test_what_fits_and_what_does_not() -> None:
    fitting = {
        (path, coupling): {c.name for c in EVERY if not c.refusal(ObjectiveConfig(path=path, coupling=coupling))}  # type: ignore[arg-type]
        for path, coupling in COMBINATIONS
    }
    velocity = {"inversion", "reconstruction", "density", "mismatch", "endpoint", "residual", "fusion", "deviation"}
    assert fitting["forward", "independent"] == fitting["reversed", "independent"] == velocity
    assert fitting["vp", "independent"] == {"ddim"}
    assert fitting["reversed", "wt_token"] == velocity - {"reconstruction", "mismatch"}
    assert fitting["reversed", "wt_soft"] == velocity - {"reconstruction", "mismatch", "density"}
    assert ReconstructionConfig(start="invert").refusal(ObjectiveConfig(path="reversed", coupling="ot")) is None
    with pytest.raises(UserError, match="predicts noise; use ddim"):
        build_scorer(EndpointConfig(), Trained(ObjectiveConfig(path="vp"), 0.0, (5, 3, 3), 1, 0))
    with pytest.raises(UserError, match="its part endpoint has postprocess paper"):
        build_scorer(FusionConfig(parts=(EndpointConfig(postprocess="paper"), EndpointConfig())), TRAINED)


def test_another_number_of_draws_than_the_calibrated_one_is_refused() -> None:
    MismatchConfig(noises=4, aggregate="mean").check_change(MismatchConfig(noises=8))
    MismatchConfig(noises=4).check_change(EndpointConfig())
    with pytest.raises(UserError, match=r"scorer\.noises: 4, but this model was calibrated with 8"):
        MismatchConfig(noises=4).check_change(MismatchConfig(noises=8))


def test_choosing_scorers() -> None:
    choice = choose("inversion:steps=10,mismatch:noises=2:times=3", ObjectiveConfig())
    assert list(choice.scorers) == ["inversion steps=10", "mismatch noises=2 times=3"]
    fused = choose("fusion:parts=[{name: endpoint}, {name: inversion, steps: 5}],endpoint", ObjectiveConfig())
    assert list(fused.scorers) == ["fusion parts=[endpoint + inversion steps=5]", "endpoint"]
    everything = choose("all", ObjectiveConfig(path="vp"))
    assert list(everything.scorers) == ["ddim"]
    assert "predicts noise" in everything.left_out["inversion"]
    for text, message in {
        "inversoin": "unknown scorer 'inversoin'; choose one of ddim, density, deviation",
        "reconstruction:tau=1.5": "scorer.tau: Input should be less than 1",
        "mismatch:grid=[0.5, 1]": "must be inside",
        "inversion:7": "write options as name:key=value",
        "ddim": "needs a network that predicts noise",
        "": "name at least one of",
    }.items():
        with pytest.raises(UserError, match=message.replace("[", r"\[")):
            choose(text, ObjectiveConfig())


def test_post_processing_of_the_papers() -> None:
    scores, protocol = features(2).square().mean(1), Protocol(map_size=6, top_percent=50.0)
    image, maps = EndpointConfig(postprocess="paper").build(TRAINED).finish(scores, protocol)
    grown = torch.nn.functional.interpolate(-scores[:, None], size=(6, 6), mode="bilinear", align_corners=True)[:, 0]
    expected = grown.exp().amax(dim=(1, 2), keepdim=True) - grown.exp()
    torch.testing.assert_close(maps, expected)
    torch.testing.assert_close(image, expected.flatten(1).max(1).values)  # 3 % of 36 pixels is one
    plain, plain_maps = MismatchConfig().build(TRAINED).finish(scores, protocol)
    paper, paper_maps = MismatchConfig(postprocess="paper").build(TRAINED).finish(scores, protocol)
    assert torch.equal(paper_maps, plain_maps)
    torch.testing.assert_close(paper, 2 * plain_maps.flatten(1).max(1).values)  # 1 % of 36 pixels is one
    assert (plain < paper).all()
