"""Evaluation for `accelerate launch`, on any number of nodes; options as of `fmad evaluate`.

    accelerate launch --config_file launcher/accelerate/one_node.yaml launcher/evaluate.py \\
        --model models:/fmad@candidate --data data/mvtec_ad --out results
"""

from fmad_dist.cli import run

if __name__ == "__main__":
    run("evaluate")
