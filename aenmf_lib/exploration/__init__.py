"""The maps of notebook 09: interactive embeddings, drawn by the browser or, for many cells, by the kernel."""

from aenmf_lib.exploration.maps import explore

__all__ = ["explore"]
