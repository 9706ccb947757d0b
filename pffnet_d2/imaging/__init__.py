"""Pixels in: files of any microscope to arrays, and arrays to what a network sees."""
