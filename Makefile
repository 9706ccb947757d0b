# make demo   train on generated images, evaluate, draw: output/demo
# make test   lint and tests          make slow   the tests that take minutes
# make lint   make bench   make setup   make clean
# make wheel  builds dist/ and walks from the wheel to a label map in new environments, of every Python of PYTHONS
# make docs   the documentation as a site: output/site          make tutorials   runs docs/tutorials: output/tutorials
# make gpu    everything that a CUDA machine can tell: output/gpu/report.md (GPU="--cpu": small, on the CPU)
# make napari tests the napari plugin on a virtual display, in an environment of its own: output/napari.png
#
# The first of them installs everything into .venv; later ones install nothing until a requirement changes.
# To choose: make setup PYTHON=python3.12 TORCH_VERSION=2.9.1 TORCHVISION_VERSION=0.24.1 (the same words for later calls)

PYTHON ?= python3
TORCH_VERSION ?= 2.14.1
TORCHVISION_VERSION ?= 0.29.1

# Of `make wheel`: those of 3.11 to 3.14 that start. (Without `true`, make drops what it prints if the last one does not.)
PYTHONS ?= $(shell for minor in 11 12 13 14; do python3.$$minor -c 'import sys; print(sys.executable)' 2>/dev/null; done; true)

VENV := .venv
BIN := $(VENV)/bin
# One stamp for each choice of versions, so that another choice installs it.
READY := $(VENV)/ready-$(TORCH_VERSION)-$(TORCHVISION_VERSION)

# napari and Qt lie in an environment on top of .venv, so that the other tests run without them.
NAPARI := $(VENV)-napari
DISPLAY_PACKAGES := xvfb xauth libgl1-mesa-dri libgl1 libegl1 libdbus-1-3 libfontconfig1 libxkbcommon-x11-0 \
	libxcb-cursor0 libxcb-icccm4 libxcb-image0 libxcb-keysyms1 libxcb-randr0 libxcb-render-util0 libxcb-shape0 \
	libxcb-xfixes0 libxcb-xinerama0
ON_SCREEN := QT_QPA_PLATFORM=xcb LIBGL_ALWAYS_SOFTWARE=1 xvfb-run --auto-servernum --server-args "-screen 0 1400x900x24"

# The site is made from text alone, so its environment has no torch.
DOCS := $(VENV)-docs
# Arguments of benchmarks/gpu.py.
GPU ?=

# Threads that wait by spinning make a busy machine ten times slower, not a quiet one faster.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: demo test slow lint bench gpu wheel docs tutorials napari xvfb setup clean

demo: $(READY)
	$(BIN)/python -m pffnet_d2.cli demo --out output/demo

test: lint
	$(BIN)/python -m pytest -q -n logical --maxprocesses 4 --dist worksteal

slow: $(READY)
	$(BIN)/python -m pytest -q -m slow

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy pffnet_d2 benchmarks/*.py

bench: $(READY)
	$(BIN)/python benchmarks/run.py

wheel: $(READY)
	$(BIN)/python tests/walk_wheel.py $(PYTHONS)

docs: $(DOCS)/ready
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --strict

$(DOCS)/ready: pyproject.toml
	$(PYTHON) -m venv --clear $(DOCS)
	$(DOCS)/bin/python -m pip install -e '.[docs]'
	@touch $@

tutorials: $(READY)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python docs/tutorials/run.py --out output/tutorials

gpu: $(READY)
	$(BIN)/python benchmarks/gpu.py $(GPU)

napari: | xvfb $(NAPARI)/ready
	$(NAPARI)/bin/npe2 validate --imports pffnet_d2
	$(ON_SCREEN) $(NAPARI)/bin/python -m pytest -q tests/napari_plugin
	$(ON_SCREEN) $(NAPARI)/bin/python tests/napari_plugin/screenshot.py output/napari.png output/napari_finetune.png

xvfb:
	@command -v xvfb-run >/dev/null || { \
		echo "make: xvfb-run is missing, and napari needs a display with OpenGL; on Debian: apt-get install $(DISPLAY_PACKAGES)" >&2; \
		exit 1; \
	}

$(NAPARI)/ready: $(READY)
	$(BIN)/python -m venv --clear $(NAPARI)
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
		> "$$($(NAPARI)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/base.pth"
	$(NAPARI)/bin/python -m pip install -e '.[napari]' 'pytest-qt>=4.4'
	@touch $@

setup: $(READY)

$(READY): Makefile setup.py pyproject.toml $(wildcard third_party/detectron2/*)
# An environment that works is kept, whatever Python made it: `make clean` before choosing another one.
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { \
		command -v $(PYTHON) >/dev/null \
			|| { echo "make: $(PYTHON) is missing: install Python 3.11 or newer, or name one: make PYTHON=..." >&2; exit 1; }; \
		$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
			|| { echo "make: $(PYTHON) is too old: install Python 3.11 or newer and name it: make PYTHON=..." >&2; exit 1; }; \
		$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
			|| { echo "make: $(PYTHON) cannot make an environment: install the system package python3-venv" >&2; exit 1; }; \
		$(PYTHON) -m venv --clear $(VENV); \
	}
	@rm -f $(VENV)/ready-*
	$(BIN)/python -m pip install "torch==$(TORCH_VERSION)" "torchvision==$(TORCHVISION_VERSION)"
	$(BIN)/python -m pip install -e '.[test]'
# A Detectron2 that works is left alone, unless it is ours, whose builder may have changed.
	$(BIN)/pffnet install-detectron2 $$($(BIN)/python -m pip list 2>/dev/null | grep -q '^detectron2 .*+pffnet' && echo --force)
	@touch $@

clean:
	rm -rf $(VENV) $(NAPARI) $(DOCS) build dist pffnet_d2.egg-info output/demo output/site .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
