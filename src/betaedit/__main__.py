"""``python -m betaedit``."""

from betaedit.cli.main import main

main()
