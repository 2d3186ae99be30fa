"""Data, training loop, evaluation and checkpoints for any model that keeps the contract; may change until 1.0.

Functions over a few records: layouts, datasets, P x K batches and protocols of multi-modal sets; objective, loop,
checkpoint, evaluation and report. Needs the extra `training`. `import stmi_layers` does not load it.
"""

from stmi_layers.training.checkpoint import Checkpoint, load_weights, read_checkpoint, save_checkpoint
from stmi_layers.training.collation import collate
from stmi_layers.training.contract import Batch, Facts, Outputs, ReIDModel
from stmi_layers.training.dataset import MultiModalDataset, facts_of, load_split
from stmi_layers.training.distributed import join, whole_batch, whole_mean
from stmi_layers.training.evaluation import concatenate, describe, evaluate, score
from stmi_layers.training.extraction import extract
from stmi_layers.training.faiss_index import build_index, open_index
from stmi_layers.training.loop import fit
from stmi_layers.training.neighbours import exact_search
from stmi_layers.training.objective import Objective
from stmi_layers.training.protocol import Protocol, protocol_for
from stmi_layers.training.record import Item, Panel, joined, unlabelled
from stmi_layers.training.report import table, write_features, write_metrics
from stmi_layers.training.sampler import IdentitySampler
from stmi_layers.training.schedule import Machine, Schedule
from stmi_layers.training.settings import Data, differences, from_dict, to_dict
from stmi_layers.training.shards import Extraction, Shards, open_shards
from stmi_layers.training.splits import read_split
from stmi_layers.training.transforms import Augmentation
from stmi_layers.training.validation import hold_out, scored_split

__all__ = [
    "Augmentation",
    "Batch",
    "Checkpoint",
    "Data",
    "Extraction",
    "Facts",
    "IdentitySampler",
    "Item",
    "Machine",
    "MultiModalDataset",
    "Objective",
    "Outputs",
    "Panel",
    "Protocol",
    "ReIDModel",
    "Schedule",
    "Shards",
    "build_index",
    "collate",
    "concatenate",
    "describe",
    "differences",
    "evaluate",
    "exact_search",
    "extract",
    "facts_of",
    "fit",
    "from_dict",
    "hold_out",
    "join",
    "joined",
    "load_split",
    "load_weights",
    "open_index",
    "open_shards",
    "protocol_for",
    "read_checkpoint",
    "read_split",
    "save_checkpoint",
    "score",
    "scored_split",
    "table",
    "to_dict",
    "unlabelled",
    "whole_batch",
    "whole_mean",
    "write_features",
    "write_metrics",
]
