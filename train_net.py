#!/usr/bin/env python
"""Train or evaluate a model, with the flags of Detectron2's tools/train_net.py; the same as `pffnet train`.

python train_net.py --config-file configs/PFFNet_R101_FPN.yaml [--num-gpus N] [--resume] [--eval-only] [KEY VALUE ...]
"""

import os
import sys

# Before torch is loaded. On the CPU its threads otherwise spin while they wait for each other, and another busy process
# on the machine then slows training tenfold (measured: 0.1 against 1.4 iterations a second).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from pffnet_d2.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
