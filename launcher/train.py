"""Entry point of training for `accelerate launch`.

accelerate launch --config_file launcher/accelerate/one_node.yaml launcher/train.py --config FILE [key=value ...]
"""

from fmad_dist.launch import config_parser, ending_well, read_config
from fmad_dist.world import World


def main() -> None:
    arguments = config_parser("Train one flow-matching detector for all classes.").parse_args()
    with ending_well():
        config = read_config(arguments)
        from fmad_dist.training.loop import train

        train(config, World.from_environment())


if __name__ == "__main__":
    main()
