from fmad_dist.cli import run

run()
