"""Entry point of a comparison of scorers for `accelerate launch`.

accelerate launch --config_file launcher/accelerate/one_node.yaml launcher/compare.py --config FILE --out DIR
"""

import argparse
from pathlib import Path

from fmad_dist.config_files import load_config
from fmad_dist.launch import ending_well
from fmad_dist.storage import use_endpoint
from fmad_dist.world import World


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare scorers on one trained model.")
    parser.add_argument("--config", required=True, help="the run's configuration, for example its config.yaml")
    parser.add_argument("--scorers", default="all", help="all, or names with options: inversion:steps=10,endpoint")
    parser.add_argument("--peers", default="", help="methods of others, trained on the same features: cflow")
    parser.add_argument("--out", required=True, type=Path, help="folder for comparison.json, .md and .png")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="values that replace the file's")
    arguments = parser.parse_args()
    with ending_well():
        config = load_config(arguments.config, arguments.overrides)
        use_endpoint(config.data.endpoint_url)
        from fmad_dist.comparison.run import run_comparison

        run_comparison(config, arguments.scorers, arguments.peers, arguments.out, World.from_environment())


if __name__ == "__main__":
    main()
