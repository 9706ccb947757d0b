"""Prediction: runs a model on images and writes its results to files."""
