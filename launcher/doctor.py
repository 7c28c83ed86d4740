"""The checks before a job for `accelerate launch`, to be started exactly as the job; options as of `fmad doctor`.

accelerate launch --config_file launcher/accelerate/one_node.yaml launcher/doctor.py --config FILE [key=value ...]
"""

from fmad_dist.cli import run

if __name__ == "__main__":
    run("doctor")
