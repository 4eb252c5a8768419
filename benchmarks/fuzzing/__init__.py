"""The parts of fuzz.py: valid files, ways to damage them, reading them through the product, judging the outcome."""
