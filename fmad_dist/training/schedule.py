"""Learning rate as a pure function of samples seen, so that it does not depend on batch layout or world size."""

import math

from fmad_dist.config import TrainConfig


def learning_rate(config: TrainConfig, step: int) -> float:
    """Rate of optimizer step `step` (counted from 0): linear warm-up over `warmup_samples`, then `decay`."""
    samples = (step + 1) * config.global_batch
    total = config.steps * config.global_batch
    if samples <= config.warmup_samples:
        return config.lr * samples / config.warmup_samples
    if config.decay == "step":
        return config.lr * config.decay_factor ** int(samples / total / config.decay_every - 1e-9)
    progress = (samples - config.warmup_samples) / max(1, total - config.warmup_samples)
    return config.lr * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
