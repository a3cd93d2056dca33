"""`python -m online` is `nextclick`."""

from online.cli import main

main()
