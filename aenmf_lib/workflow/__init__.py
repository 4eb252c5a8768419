"""Executing the notebooks: their parameters, the runner and the command line."""
