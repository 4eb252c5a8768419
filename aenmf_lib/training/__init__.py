"""How an objective is minimized over all cells."""
