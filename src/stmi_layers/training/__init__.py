"""What every ReID experiment writes again, for any model that keeps the contract; may change until 1.0.

Functions over a few records: layouts, datasets, P x K batches and protocols of multi-modal sets. Needs the extra
`training`. `import stmi_layers` does not load it.
"""

from stmi_layers.training.contract import Batch, Facts, Outputs, ReIDModel
from stmi_layers.training.dataset import MultiModalDataset, collate, facts_of, load_split
from stmi_layers.training.protocol import Protocol, protocol_for
from stmi_layers.training.record import Item, Panel, joined, unlabelled
from stmi_layers.training.sampler import IdentitySampler
from stmi_layers.training.settings import Data, differences, from_dict, to_dict
from stmi_layers.training.splits import read_split
from stmi_layers.training.transforms import Augmentation

__all__ = [
    "Augmentation",
    "Batch",
    "Data",
    "Facts",
    "IdentitySampler",
    "Item",
    "MultiModalDataset",
    "Outputs",
    "Panel",
    "Protocol",
    "ReIDModel",
    "collate",
    "differences",
    "facts_of",
    "from_dict",
    "joined",
    "load_split",
    "protocol_for",
    "read_split",
    "to_dict",
    "unlabelled",
]
