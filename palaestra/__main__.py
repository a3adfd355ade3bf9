"""`python -m palaestra`: the command line."""

from palaestra.cli import main

main()
