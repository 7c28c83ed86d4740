"""Entry point of evaluation for `accelerate launch`; it needs no training processes.

    accelerate launch --config_file launcher/accelerate/one_node.yaml launcher/evaluate.py \
        --model models:/fmad@candidate --manifest data/mvtec_ad --out results/
"""

import argparse
from pathlib import Path

from fmad_dist.launch import ending_well
from fmad_dist.world import World


def main() -> None:
    parser = argparse.ArgumentParser(description="Score every test image once and write metrics and a report.")
    parser.add_argument("--model", required=True, help="run directory, detector folder or models:/ URI")
    parser.add_argument("--name", help="what the report calls the model; default: --model")
    parser.add_argument("--manifest", required=True, action="append", help="URL of a converted dataset; repeatable")
    parser.add_argument("--out", required=True, type=Path, help="folder for results, tables and report.html")
    parser.add_argument("--workers", type=int, default=0, help="reader processes per rank")
    parser.add_argument(
        "--save-every", type=float, default=60.0, metavar="SECONDS", help="keep what was scored so often"
    )
    parser.add_argument("--maps", metavar="URL", help="folder for all anomaly maps as float16 WebDataset tars")
    parser.add_argument("--tiff", metavar="URL", help="folder for all maps as TIFF at the size of the images")
    parser.add_argument("--protocol", help="evaluate by another named protocol than the model's own")
    parser.add_argument("--overwrite", action="store_true", help="replace another evaluation in --out")
    parser.add_argument("--compile", action="store_true", help="torch.compile the network, for a GPU")
    parser.add_argument("overrides", nargs="*", metavar="scorer.key=value", help="score with other settings")
    arguments = parser.parse_args()
    with ending_well():
        from fmad_dist.evaluation.run import EvaluationOptions, run_evaluation
        from fmad_dist.registry.versions import named_version

        options = EvaluationOptions(
            model=arguments.model,
            name=arguments.name or named_version(arguments.model),
            manifests=arguments.manifest,
            out=arguments.out,
            workers=arguments.workers,
            save_s=arguments.save_every,
            overrides=arguments.overrides,
            maps=arguments.maps,
            tiff=arguments.tiff,
            protocol=arguments.protocol,
            overwrite=arguments.overwrite,
            compiled=arguments.compile,
        )
        run_evaluation(options, World.from_environment())


if __name__ == "__main__":
    main()
