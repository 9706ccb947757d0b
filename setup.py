"""Which folders are packages. All else about the package is in pyproject.toml, which cannot say this."""

from setuptools import find_packages, setup

# Folders of the checkout that are installed inside the package, under its name.
INSIDE = {"pffnet_d2.configs": "configs", "pffnet_d2.third_party.detectron2": "third_party/detectron2"}

setup(packages=[*find_packages(include=["pffnet_d2", "pffnet_d2.*"]), *INSIDE], package_dir=INSIDE)
