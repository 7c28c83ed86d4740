"""One small flow trained on features that stay in the memory of a GPU: a whole step is one CUDA graph."""

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

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
    seed: int = 0


def train(trial: Trial, x: Tensor, classes: Tensor) -> DiT:
    """Averaged weights after `trial.steps` on whitened features x [N, C, G, G]."""
    device = x.device
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
        loss = flow_loss(network, trial, x, classes)
        loss.backward()
        nn.utils.clip_grad_norm_(own, 1.0, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
        with torch.no_grad():
            torch._foreach_lerp_(kept, own, 1 - trial.decay)

    run = _captured(step) if on_gpu else step
    for number in range(trial.steps):
        warm = min(1.0, (number + 1) / 100)
        lr.fill_(trial.lr * warm * 0.5 * (1 + math.cos(math.pi * number / trial.steps)))
        run()
        if number < 2000 and number % 50 == 0:  # the average follows quickly at first
            with torch.no_grad():
                torch._foreach_lerp_(kept, own, max(0.0, 1 - number / 2000))
    return average.eval()


def flow_loss(network: DiT, trial: Trial, x: Tensor, classes: Tensor) -> Tensor:
    rows = torch.randint(len(x), (trial.batch,), device=x.device)
    data = x[rows].float()
    if trial.flips:
        flip = torch.rand(trial.batch, 1, 1, 1, device=x.device) < 0.5
        data = torch.where(flip, data.flip(-1), data)
    noise = torch.randn_like(data)
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
    return (answer.float() - (data - noise)).square().mean()


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
