"""How a notebook is executed."""
