"""Training and evaluation for any model that keeps the contract; needs the extra `training`."""

from stmi_layers.training.checkpoint import Checkpoint, load_weights, read_checkpoint, save_checkpoint
from stmi_layers.training.contract import Batch, Facts, Outputs, ReIDModel
from stmi_layers.training.distributed import whole_batch
from stmi_layers.training.evaluation import concatenate, describe, evaluate, score
from stmi_layers.training.loop import fit
from stmi_layers.training.objective import Objective
from stmi_layers.training.report import table, write_features, write_metrics
from stmi_layers.training.schedule import Machine, Schedule

__all__ = [
    "Batch",
    "Checkpoint",
    "Facts",
    "Machine",
    "Objective",
    "Outputs",
    "ReIDModel",
    "Schedule",
    "concatenate",
    "describe",
    "evaluate",
    "fit",
    "load_weights",
    "read_checkpoint",
    "save_checkpoint",
    "score",
    "table",
    "whole_batch",
    "write_features",
    "write_metrics",
]
