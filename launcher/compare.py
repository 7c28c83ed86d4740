"""Entry point of a comparison of scorers for `accelerate launch`.

accelerate launch --config_file launcher/accelerate/one_node.yaml launcher/compare.py --config FILE --out DIR
"""

from pathlib import Path

from fmad_dist.launch import config_parser, ending_well, read_config
from fmad_dist.world import World


def main() -> None:
    parser = config_parser("Compare scorers on one trained model.")
    parser.add_argument("--scorers", default="all", help="all, or own and names with options: own,endpoint")
    parser.add_argument("--peers", default="", help="methods of others: bank,bank_pooled,cflow")
    parser.add_argument("--model", help="detector of another place than the run directory of --config")
    parser.add_argument("--out", required=True, type=Path, help="folder for comparison.json, .md and .png")
    arguments = parser.parse_args()
    with ending_well():
        config = read_config(arguments)
        from fmad_dist.comparison.run import run_comparison

        model, world = arguments.model or config.run_dir, World.from_environment()
        run_comparison(config, model, arguments.scorers, arguments.peers, arguments.out, world)


if __name__ == "__main__":
    main()
