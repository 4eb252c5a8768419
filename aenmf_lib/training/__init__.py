"""Moments of the cells, and the solvers that minimize an objective over all cells."""
