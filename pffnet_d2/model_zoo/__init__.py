"""Finds, reads and packages trained models."""
