"""The maps of notebook 09: embeddings with widgets, or as an image for millions of cells."""

from aenmf_lib.exploration.maps import explore

__all__ = ["explore"]
