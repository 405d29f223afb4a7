"""`python -m cli` is `aggregator`."""

from cli.main import main

main()
