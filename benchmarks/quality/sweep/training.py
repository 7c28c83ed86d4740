"""One small flow trained on features that stay in memory; on a GPU a whole step is one CUDA graph."""

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fmad_dist.config.run import ObjectiveConfig
from fmad_dist.flow.objective import couple
from fmad_dist.networks.dit import DiT, DiTSpec


@dataclass(frozen=True)
class Trial:
    """What a run varies; the defaults are the baseline."""

    name: str
    backbone: str = "tf_efficientnet_lite0"
    taps: tuple[int, ...] = (0, 1, 2, 3)
    grid: int = 16
    average: bool = False  # 3 x 3 means of the features
    whitening: str = "channel"  # or "pca", per tap "tap_pca"
    width: int = 192
    depth: int = 4
    heads: int = 3
    skip: str = "none"
    steps: int = 4000
    batch: int = 16
    lr: float = 1e-3
    decay: float = 0.999
    weight_decay: float = 0.0
    time_mean: float | None = None  # of a logit-normal distribution; None = uniform
    labels: bool = False
    flips: bool = False  # mirrored images in training
    coupling: str = "independent"  # as in `objective.coupling`; on a CPU only
    weight: str = "velocity"  # errors of the velocity, or of what it says of the "data" or the "noise"
    even_taps: bool = False  # every tap counts the same in the loss, however many channels it has
    seed: int = 0


def train(trial: Trial, x: Tensor, classes: Tensor, tap_channels: tuple[int, ...]) -> DiT:
    """Averaged weights after `trial.steps` on whitened features x [N, C, G, G], the taps one after the other."""
    device = x.device
    shares = channel_weights(trial, tap_channels).to(device)
    torch.manual_seed(trial.seed)
    count = int(classes.max()) + 1 if trial.labels else 0
    sizes = (trial.width, trial.depth, trial.heads)
    spec = DiTSpec(x.shape[1], trial.grid, *sizes, num_classes=count, skip=trial.skip)  # type: ignore[arg-type]
    network = DiT(spec).to(device).train()
    average = copy.deepcopy(network)
    lr = torch.tensor(trial.lr, device=device)
    on_gpu = device.type == "cuda"
    optimizer = torch.optim.AdamW(
        network.parameters(), lr, betas=(0.9, 0.99), weight_decay=trial.weight_decay, fused=True, capturable=on_gpu
    )
    own, kept = list(network.parameters()), list(average.parameters())

    def step() -> None:
        loss = flow_loss(network, trial, x, classes, shares)
        loss.backward()
        nn.utils.clip_grad_norm_(own, 1.0, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)

    run = _captured(step) if on_gpu else step
    for number in range(trial.steps):
        warm = min(1.0, (number + 1) / 100)
        lr.fill_(trial.lr * warm * 0.5 * (1 + math.cos(math.pi * number / trial.steps)))
        run()
        with torch.no_grad():  # as `fmad` averages: quickly at first
            torch._foreach_lerp_(kept, own, 1 - min(trial.decay, (1 + number) / (10 + number)))
    return average.eval()


def channel_weights(trial: Trial, tap_channels: tuple[int, ...]) -> Tensor:
    """Of mean one, [C, 1, 1]."""
    weights = [torch.full((count,), 1 / count if trial.even_taps else 1.0) for count in tap_channels]
    joined = torch.cat(weights)
    return (joined / joined.mean())[:, None, None]


def flow_loss(network: DiT, trial: Trial, x: Tensor, classes: Tensor, shares: Tensor) -> Tensor:
    rows = torch.randint(len(x), (trial.batch,), device=x.device)
    data = x[rows].float()
    if trial.flips:
        flip = torch.rand(trial.batch, 1, 1, 1, device=x.device) < 0.5
        data = torch.where(flip, data.flip(-1), data)
    noise = torch.randn_like(data)
    if trial.coupling != "independent":
        noise = couple(data, noise, ObjectiveConfig(coupling=trial.coupling))  # type: ignore[arg-type]
    if trial.time_mean is None:
        t = torch.rand(trial.batch, device=x.device)
    else:
        t = torch.sigmoid(trial.time_mean + torch.randn(trial.batch, device=x.device))
    at = t.view(-1, 1, 1, 1)
    y = None
    if trial.labels:
        unknown = torch.rand(trial.batch, device=x.device) < 0.5
        y = torch.where(unknown, network.spec.num_classes, classes[rows])
    with torch.autocast(x.device.type, torch.bfloat16, enabled=x.device.type == "cuda", cache_enabled=False):
        answer = network(at * data + (1 - at) * noise, t, y)
    # The data that a velocity v says is x_t + (1 - t) v, the noise x_t - t v; mean weights over uniform times are one.
    weight = {"velocity": torch.ones_like(at), "data": 3 * (1 - at).square(), "noise": 3 * at.square()}[trial.weight]
    return (weight * shares * (answer.float() - (data - noise)).square()).mean()


def _captured(step):
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay
