"""`python -m hasten` is the command `hasten`."""

from hasten.cli import main

main()
