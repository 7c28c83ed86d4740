from fmad_dist.cli import main

main()
