"""A Slurm to try things with, until interrupted."""

from tests.kit.slurm import main

main()
