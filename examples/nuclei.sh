#!/usr/bin/env bash
# Makes the shipped model from the publishers' files: prepares, trains, scores, packages and exports.
#
#     examples/nuclei.sh DATA OUT [flags and KEY VALUE of `pffnet train`]
#
# DATA holds the folders bbbc039, dsb2018 and tnbc (docs/data.md). On two CPU cores add --cpu-ranks 2; on a GPU with
# enough memory SOLVER.IMS_PER_BATCH 16 SOLVER.BASE_LR 0.001 SOLVER.AMP.ENABLED True. Called again it goes on where it
# stopped: what is prepared stays, and training resumes from its last checkpoint.
set -euo pipefail
if [ $# -lt 2 ]; then
    sed -n '2,8s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
    exit 2
fi
data=$(realpath "$1")
out=$(realpath -m "$2")
shift 2
here=$(dirname "$(realpath "${BASH_SOURCE[0]}")")/..
export DETECTRON2_DATASETS=$out/datasets OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}

prepare() { # SPLIT ARGUMENTS: what has this split is not prepared again
    [ -f "$DETECTRON2_DATASETS/$1/instances.json" ] || pffnet prepare "${@:2}" --out "$DETECTRON2_DATASETS"
}
prepare bbbc039/val bbbc039 --source "$data/bbbc039"
prepare tnbc/val tnbc --source "$data/tnbc"
prepare dsb2018/nuclei_val dsb2018 --source "$data/dsb2018" --scheme nuclei \
    --option normalisation=stretch --option partial=true

config=$here/configs/nuclei/PFFNet_Lite0_FPN.yaml
pffnet train --config-file "$config" --resume OUTPUT_DIR "$out/run" "$@"
pffnet package --config "$out/run/config.yaml" --weights "$out/run/model_final.pth" --out "$out/nuclei" \
    --about "$here/examples/nuclei_card.yaml"
pffnet export --model "$out/nuclei" --format onnx --out "$out/nuclei"
