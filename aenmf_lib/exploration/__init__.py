"""The maps of notebook 09: embeddings with widgets, or as an image for millions of cells."""
