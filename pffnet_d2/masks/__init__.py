"""Masks of single objects and label maps, which prediction, evaluation and export exchange. Needs only NumPy."""
