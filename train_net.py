#!/usr/bin/env python
"""Train or evaluate a model, with the flags of Detectron2's tools/train_net.py; the same as `pffnet train`.

python train_net.py --config-file configs/PFFNet_R101_FPN.yaml [--num-gpus N] [--resume] [--eval-only] [KEY VALUE ...]
"""

import sys

from pffnet_d2.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
