"""The study of what conditioning keeps and removes (notebook 08)."""
