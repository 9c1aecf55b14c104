"""Let ``python -m speedkit.cli`` be the program."""

from speedkit.cli.main import main

main()
