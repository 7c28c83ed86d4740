"""Entry point of prediction for `accelerate launch`; it needs no training processes.

    accelerate launch --config_file launcher/accelerate/one_node.yaml launcher/predict.py \
        --model models:/fmad@candidate --source photos/ --out predictions/
"""

import argparse

from fmad_dist.launch import ending_well
from fmad_dist.world import World


def main() -> None:
    parser = argparse.ArgumentParser(description="Score images that nobody has labelled.")
    parser.add_argument("--model", required=True, help="run directory, detector folder or models:/ URI")
    parser.add_argument("--name", help="what the record calls the model; default: --model")
    parser.add_argument("--source", required=True, action="append", help="folder, tar or converted dataset; repeatable")
    parser.add_argument("--out", required=True, help="folder for the table and pictures, which all nodes share")
    parser.add_argument("--sensitivity", type=float, default=0.5, help="0 to 1, 0.5 = as calibrated")
    parser.add_argument(
        "--threshold", default="class", choices=("class", "global"), help="of the class, or one for all"
    )
    parser.add_argument("--pictures", default="all", choices=("all", "anomalous", "none"))
    parser.add_argument("--max-bad", type=int, default=100, help="unreadable images before it is an error")
    parser.add_argument("--overwrite", action="store_true", help="remove another prediction in --out")
    parser.add_argument("--compile", action="store_true", help="torch.compile the network, for a GPU")
    arguments = parser.parse_args()
    with ending_well():
        from fmad_dist.prediction.pictures import Pictures
        from fmad_dist.prediction.run import PredictionOptions, run_prediction
        from fmad_dist.registry.versions import named_version

        options = PredictionOptions(
            sources=arguments.source,
            out=arguments.out,
            name=arguments.name or named_version(arguments.model),
            sensitivity=arguments.sensitivity,
            threshold=arguments.threshold,
            pictures=Pictures(arguments.pictures),
            max_bad=arguments.max_bad,
            overwrite=arguments.overwrite,
            compiled=arguments.compile,
        )
        run_prediction(arguments.model, options, World.from_environment())


if __name__ == "__main__":
    main()
