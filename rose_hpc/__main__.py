"""``python -m rose_hpc``: the command line."""

from rose_hpc.cli import main

main()
