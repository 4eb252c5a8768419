"""Run the command line: ``python -m aenmf_lib --help``."""

from aenmf_lib.workflow.cli import main

main()
