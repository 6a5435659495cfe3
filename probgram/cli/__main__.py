"""`python -m probgram.cli`."""

from probgram.cli import main

main()
