"""Reads image files of any microscope as arrays and normalises arrays for the networks."""
