"""The napari plugin: a widget that segments layers and fine-tunes models on corrected labels, and sample images.

``layers``, ``segment``, ``finetuning``, ``models``, ``llvm`` and ``sample_data`` import neither napari nor Qt; ``job``
and the modules of the widget do. The networks are imported in the thread that runs them, so that napari responds.
``napari.yaml`` tells napari what there is (the entry point ``napari.manifest`` in pyproject.toml leads to it).
"""
