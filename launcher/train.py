"""Entry point of training for `accelerate launch`.

accelerate launch --config_file launcher/accelerate/one_node.yaml launcher/train.py --config FILE [key=value ...]
"""

import argparse

from fmad_dist.config_files import load_config
from fmad_dist.launch import ending_well
from fmad_dist.storage import use_endpoint
from fmad_dist.world import World


def main() -> None:
    parser = argparse.ArgumentParser(description="Train one flow-matching detector for all classes.")
    parser.add_argument("--config", required=True, help="YAML file, see configs/")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="values that replace the file's")
    arguments = parser.parse_args()
    with ending_well():
        config = load_config(arguments.config, arguments.overrides)
        use_endpoint(config.data.endpoint_url)
        from fmad_dist.training.loop import train

        train(config, World.from_environment())


if __name__ == "__main__":
    main()
