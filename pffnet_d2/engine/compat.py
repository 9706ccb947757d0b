"""Differences between the releases of Detectron2 that we support.

They are detected by their features: Detectron2 0.6 and upstream's main both have the version 0.6.
"""

from __future__ import annotations

from detectron2.engine import DefaultTrainer
from detectron2.engine.train_loop import TrainerBase

# Main's DefaultTrainer saves its inner trainer (optimizer, gradient scaler) in checkpoints under "_trainer", and cannot
# load a checkpoint without it. 0.6 does not save it, so that momentum is lost on resuming.
TRAINER_KEEPS_OPTIMIZER = DefaultTrainer.state_dict is not TrainerBase.state_dict
