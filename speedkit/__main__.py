"""``python -m speedkit``."""

from speedkit.cli.main import main

main()
