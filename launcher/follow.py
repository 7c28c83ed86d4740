"""The evaluator beside a training for `accelerate launch`, a job of its own; options as of `fmad follow`.

accelerate launch --config_file launcher/accelerate/one_gpu.yaml launcher/follow.py --run runs/NAME
"""

from fmad_dist.cli import run

if __name__ == "__main__":
    run("follow")
