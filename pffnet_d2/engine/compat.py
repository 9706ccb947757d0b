"""What differs between the Detectron2 releases this plugin runs on, found by looking, not by version.

Detectron2 0.6 and upstream's main both call themselves 0.6.
"""

from __future__ import annotations

from detectron2.engine import DefaultTrainer
from detectron2.engine.train_loop import TrainerBase

# Main's DefaultTrainer puts its inner trainer (optimizer, gradient scaler) into checkpoints under "_trainer", and fails
# on a checkpoint without it; 0.6 leaves it out, and momentum is lost on resuming.
TRAINER_KEEPS_OPTIMIZER = DefaultTrainer.state_dict is not TrainerBase.state_dict
