"""Run the command line: ``python -m aenmf_lib --help``."""

from aenmf_lib.workflow import cli, environment

environment.clean_this_process()
environment.stop_with_make()
cli.main()
