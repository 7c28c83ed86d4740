"""A comparison of scorers for `accelerate launch`, on any number of nodes; options as of `fmad compare`.

accelerate launch --config_file launcher/accelerate/one_node.yaml launcher/compare.py --config FILE --out DIR
"""

from fmad_dist.cli import run

if __name__ == "__main__":
    run("compare")
