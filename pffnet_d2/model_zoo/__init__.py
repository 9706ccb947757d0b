"""Trained models: found by name or folder, read, packaged, exported."""
