"""Training for `accelerate launch`, on any number of nodes; options as of `fmad train`.

accelerate launch --config_file launcher/accelerate/one_node.yaml launcher/train.py --config FILE [key=value ...]
"""

from fmad_dist.cli import run

if __name__ == "__main__":
    run("train")
