"""Prediction for `accelerate launch`, on any number of nodes; options as of `fmad predict`.

    accelerate launch --config_file launcher/accelerate/one_node.yaml launcher/predict.py \\
        --model models:/fmad@candidate --source photos --out predictions
"""

from fmad_dist.cli import run

if __name__ == "__main__":
    run("predict")
