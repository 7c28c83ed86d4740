"""Entry point of the checks before a job for `accelerate launch`: the same options as the job will have.

accelerate launch --config_file launcher/accelerate/one_node.yaml launcher/doctor.py --config FILE [key=value ...]
"""

from fmad_dist.launch import config_parser, ending_well, read_config
from fmad_dist.world import World


def main() -> None:
    arguments = config_parser("Check nodes, storage and tracking before a training.").parse_args()
    with ending_well():
        config = read_config(arguments)
        from fmad_dist.doctor import examine, report
        from fmad_dist.training.engine import gather_objects

        world = World.from_environment()
        world.join()
        try:
            report(examine(config, world, gather_objects), world)
        finally:
            world.leave()


if __name__ == "__main__":
    main()
