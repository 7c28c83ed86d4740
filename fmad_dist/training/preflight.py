"""What can be wrong with a training job and is cheap to find out before any process is started."""

from fmad_dist.config import RunConfig
from fmad_dist.errors import UserError
from fmad_dist.features.backbones import load_backbone
from fmad_dist.features.prepare import feature_spec
from fmad_dist.networks.build import network_spec
from fmad_dist.scoring.build import refusal
from fmad_dist.storage.scratch import check_writable
from fmad_dist.stream.plan import BatchLayout
from fmad_dist.training.checkpoint import Checkpoints, check_belongs
from fmad_dist.training.data import open_data


def check_job(config: RunConfig, processes: int) -> None:
    """Check configuration, data, backbone, run directory and an existing checkpoint against each other.

    Raises:
        UserError: the first thing that would make the job fail.
    """
    reason = refusal(config.scorer, config.objective)
    if reason:
        raise UserError(f"scorer.name: {config.scorer.name} does not fit the objective: {reason}.")
    BatchLayout.fit(config.train.global_batch, config.train.micro_batch, processes)
    data = open_data(config)
    backbone = load_backbone(feature_spec(config.features), config.features.weights)
    newest = Checkpoints(config.checkpoint_url).newest_readable()
    if newest is not None:
        num_classes = len(data.mixture.class_names)
        network = network_spec(config.model, backbone.num_channels, config.features.grid, num_classes)
        check_belongs(newest, network, config.objective, data.digest)
    check_writable(config.run_dir, "`output`")
