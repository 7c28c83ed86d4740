"""Entry point of the evaluator beside a training for `accelerate launch`; it is a job of its own.

accelerate launch --config_file launcher/accelerate/one_gpu.yaml launcher/follow.py --run runs/NAME
"""

import argparse
from pathlib import Path

from fmad_dist.launch import ending_well
from fmad_dist.world import World


def main() -> None:
    parser = argparse.ArgumentParser(description="Score each new checkpoint on synthetic defects on held-out normals.")
    parser.add_argument("--run", required=True, help="run directory, or the folder or URL of its checkpoints")
    parser.add_argument("--out", type=Path, help="folder of the record; default the run directory")
    parser.add_argument("--once", action="store_true", help="score the checkpoints that are there and end")
    parser.add_argument("--patience", type=float, default=7200.0, help="seconds without a new checkpoint until it ends")
    parser.add_argument("--per-class", type=int, default=16, help="most held-out normals per class")
    arguments = parser.parse_args()
    with ending_well():
        from fmad_dist.follow.job import FollowOptions, follow
        from fmad_dist.follow.record import record_folder

        options = FollowOptions(
            run=arguments.run,
            out=record_folder(arguments.run, arguments.out),
            once=arguments.once,
            patience_s=arguments.patience,
            per_class=arguments.per_class,
        )
        follow(options, World.from_environment())


if __name__ == "__main__":
    main()
