"""Readers, conversion to COCO, registration and the mapper.

Empty on purpose: the numpy parts (images, coco, phantoms, prepare, readers) import without torch and Detectron2.
"""
