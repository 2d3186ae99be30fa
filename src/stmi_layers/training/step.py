"""One training step: the model on the samples of this process, the objective on those of all processes."""

import torch
from torch import Tensor, nn

from stmi_layers._precision import at_least_float32
from stmi_layers.training.contract import Batch, Outputs
from stmi_layers.training.distributed import num_processes, whole_batch
from stmi_layers.training.objective import Objective


# --8<-- [start:loss]
class WholeBatchLoss(nn.Module):
    """Parts of the objective on the features of all processes: the module that DDP wraps.

    Args:
        model: model that every process runs on its own samples.
        objective: objective on the features of all samples, in at least float32.
        autocast: run the model in bfloat16 autocast.
    """

    def __init__(self, model: nn.Module, objective: Objective, *, autocast: bool = False) -> None:
        super().__init__()
        self.model, self.objective, self.autocast = model, objective, autocast
        self._checked = False

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the weighted parts of the objective by name; their sum is the loss."""
        with torch.autocast(batch.images.device.type, torch.bfloat16, enabled=self.autocast):
            outputs = self.model(batch)
        if not self._checked:
            self.objective.check(outputs, len(batch.labels))
            self._checked = True
        return self.objective(gather(outputs), whole_batch(batch.labels))


# --8<-- [end:loss]
def gather(outputs: Outputs) -> Outputs:
    """Return the features and supervised rows of all processes; the terms of the model stay as they are."""
    if num_processes() == 1:
        return outputs
    features = {name: whole_batch(at_least_float32(feature)) for name, feature in outputs.features.items()}
    everywhere = {name: feature.new_ones(len(feature), dtype=torch.bool) for name, feature in outputs.features.items()}
    # For all features: a process where every row is supervised has to take part too.
    rows = whole_batch(torch.stack([*(everywhere | dict(outputs.rows)).values()], dim=1))
    supervised = {} if rows.all() else dict(zip(everywhere, rows.unbind(dim=1), strict=True))
    return outputs._replace(features=features, rows=supervised)
