"""The four models."""
