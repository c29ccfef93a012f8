"""`python -m lengthen.cli`, for launchers that take a module."""

from lengthen.cli import main

main()
