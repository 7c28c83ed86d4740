"""`fmad doctor`: the checks before a job."""

from fmad_dist.cli import options


def doctor(
    config: options.Config,
    overrides: options.Overrides = None,
    data: options.RunData = None,
    processes: options.Processes = None,
    endpoint_url: options.RunEndpointUrl = None,
    tracking_uri: options.RunTrackingUri = None,
) -> None:
    """Check versions, GPUs, clocks, storage, disks and MLflow before hours are spent; one line each, with the fix.

    On many nodes: `accelerate launch launcher/doctor.py` with the options of the job.
    """
    resolved = options.resolve_run(config, overrides, data, endpoint_url, tracking_uri)

    from fmad_dist.launch.processes import run_job
    from fmad_dist.training.doctor import run_doctor

    run_job(run_doctor, resolved, processes)
