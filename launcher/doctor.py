"""Entry point of the checks before a job for `accelerate launch`: the same options as the job will have.

accelerate launch --config_file launcher/accelerate/one_node.yaml launcher/doctor.py --config FILE [key=value ...]
"""

import argparse

from fmad_dist.config_files import load_config
from fmad_dist.launch import ending_well
from fmad_dist.storage import use_endpoint
from fmad_dist.world import World


def main() -> None:
    parser = argparse.ArgumentParser(description="Check nodes, storage and tracking before a training.")
    parser.add_argument("--config", required=True, help="the configuration that will train")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="values that replace the file's")
    arguments = parser.parse_args()
    with ending_well():
        config = load_config(arguments.config, arguments.overrides)
        use_endpoint(config.data.endpoint_url)
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
