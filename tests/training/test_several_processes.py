"""Several processes make the step of one: shared batches, and the loss and gradients of the whole batch."""

import json
import re
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from examples.several_processes import Gather, Share, WholeBatchLoss, join, main
from examples.stmi import evaluate
from examples.stmi.model import STMI, Features, STMILoss, build_stmi
from examples.stmi.settings import Settings
from examples.towers.text import CaptionEncoder
from sets import write_set
from stmi_layers import ReIDLoss
from stmi_layers.backbones import TokenBackbone, modulate
from stmi_layers.training.dataset import IdentitySampler

ROOT = Path(__file__).parents[2]
PROCESSES = 2


def model_and_loss() -> tuple[STMI, STMILoss]:
    """A modulated transformer of open_clip under STMI with captions, in float64; the same in every process."""
    from open_clip.transformer import VisionTransformer

    torch.manual_seed(0)
    tower = VisionTransformer((32, 16), patch_size=8, width=16, layers=2, heads=2, mlp_ratio=2.0, output_dim=16)
    backbone = TokenBackbone(modulate(tower), projected=True)
    model = build_stmi(backbone, 2, num_tokens=2, num_heads=2, text_encoder=CaptionEncoder(9, 5, 16, num_heads=2))
    return model.double(), STMILoss(model.feature_widths(2), num_identities=4).double()


def whole_batch() -> tuple[Tensor, ...]:
    """Four identities, two images each; one modality is missing in a sample of the last process."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(8, 2, 3, 32, 16, generator=generator, dtype=torch.float64)
    masks = torch.rand(8, 2, 32, 16, generator=generator) < 0.5
    present = torch.ones(8, 2, dtype=torch.bool)
    present[6, 1] = False
    words = torch.randint(1, 9, (8, 5), generator=generator)
    return images, masks, present, words, torch.arange(8) // 2, torch.ones(8, dtype=torch.bool)


def gradients(module: nn.Module) -> dict[str, Tensor]:
    return {name: item.grad for name, item in module.named_parameters() if item.grad is not None}


def in_one_process(index: int, folder: str, rank: int) -> None:
    """What each of the processes does; the last one writes down what it got."""
    rendezvous, patience = f"file://{folder}/rendezvous", timedelta(minutes=5)
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=PROCESSES, timeout=patience)
    step = WholeBatchLoss(*model_and_loss())
    size = 8 // PROCESSES
    share = (item[rank * size : (rank + 1) * size] for item in whole_batch())
    parallel = DistributedDataParallel(step)  # kept: without it nothing averages the gradients
    loss = parallel(*share)
    loss.backward()
    rows = torch.full((1, 2), float(rank), requires_grad=True)
    gathered = Gather.apply(rows)
    (gathered * torch.tensor([[1.0], [10.0]]) * (rank + 1)).sum().backward()
    with pytest.raises(ValueError, match="SyncBatchNorm expected input tensor to be on GPU"):  # as the guide says
        nn.SyncBatchNorm(2)(torch.zeros(4, 2))
    if rank == PROCESSES - 1:
        found = {"loss": loss.detach(), "gathered": gathered.detach(), "of_rows": rows.grad, **gradients(step)}
        torch.save(found, f"{folder}/found.pt")
    dist.destroy_process_group()


def test_the_gradients_are_those_of_one_process_with_the_whole_batch(tmp_path: Path):
    other = spawn(in_one_process, (str(tmp_path), 1), join=False)
    in_one_process(0, str(tmp_path), 0)
    while not other.join():
        pass
    found = torch.load(tmp_path / "found.pt")
    assert torch.equal(found.pop("gathered"), torch.tensor([[0.0, 0.0], [1.0, 1.0]]))
    assert torch.equal(found.pop("of_rows"), torch.full((1, 2), 10.0 * (1 + 2)))

    model, loss = model_and_loss()
    *inputs, labels, has_caption = whole_batch()
    expected = loss(model(*inputs), labels, has_caption)
    expected.backward()
    torch.testing.assert_close(found.pop("loss"), expected.detach())
    whole = nn.ModuleDict({"model": model, "loss": loss})
    torch.testing.assert_close(found, gradients(whole), rtol=1e-9, atol=1e-12)
    assert any(name.endswith(".alpha") and value.any() for name, value in found.items())


def test_shares_make_up_the_batches_and_keep_identities_whole():
    labels = [label for label in range(6) for _ in range(3)]
    batches = IdentitySampler(labels, 4, 2)
    batches.set_epoch(3)
    shares = [list(Share(batches, rank, PROCESSES)) for rank in range(PROCESSES)]
    assert [one + other for one, other in zip(*shares, strict=True)] == list(batches)
    assert len(Share(batches, 0, PROCESSES)) == len(shares[0])
    for batch, other in zip(*shares, strict=True):
        assert not {labels[index] for index in batch} & {labels[index] for index in other}


def test_identities_that_cannot_be_shared_out_are_refused():
    message = r"multiple of the number of processes, 2; received 3 \(--identities-per-batch\)"
    with pytest.raises(ValueError, match=message):
        Share(IdentitySampler([0, 0, 1, 1, 2, 2], 3, 2), 0, 2)


def test_the_norm_of_the_head_survives_its_synchronisation():
    loss = ReIDLoss(8, 5)
    names = list(loss.state_dict())
    synchronised = nn.SyncBatchNorm.convert_sync_batchnorm(loss)
    assert isinstance(synchronised.head.norm, nn.SyncBatchNorm)
    assert list(synchronised.state_dict()) == names
    assert not synchronised.head.norm.bias.requires_grad


def test_the_program_needs_torchrun(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(ValueError, match="start it with torchrun: torchrun --nproc-per-node 2"):
        join("cpu")


def test_a_run_is_not_overwritten(tmp_path: Path):
    (tmp_path / "checkpoint.pt").touch()
    with pytest.raises(FileExistsError, match="holds a run already: choose another --out"):
        main(Settings(data=tmp_path, out=tmp_path))


@pytest.mark.parametrize("reads", [True, False])
def test_a_model_that_reads_cameras_gets_them(reads: bool, monkeypatch):
    given = []

    class Model(torch.nn.Module):
        reads_cameras = reads

        def forward(self, *inputs):
            given.append(inputs[4])
            return Features(torch.zeros(2, 4), None, None)

    monkeypatch.setattr(Gather, "apply", lambda rows: rows)
    step = WholeBatchLoss(Model(), STMILoss({"G": 4}, 2))
    labels, cameras = torch.tensor([0, 1]), torch.tensor([3, 5])
    step(torch.zeros(2, 1, 3, 8, 8), None, None, None, labels, torch.ones(2, dtype=torch.bool), cameras)
    assert given == ([cameras] if reads else [None])


def test_the_program_trains_and_its_checkpoint_is_evaluated_alike(tmp_path: Path):
    data, out = write_set(tmp_path / "set"), tmp_path / "run"
    tiny = ["--image-size", "16", "16", "--patch-size", "4", "--dim", "16", "--depth", "1", "--num-heads", "2"]
    finished = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
            *("-m", "examples.several_processes", "--data", str(data), "--out", str(out), "--modalities", "RGB", "NI"),
            *("--captions", "required", *tiny, "--epochs", "2", "--warmup-epochs", "1"),
            *("--identities-per-batch", "4", "--images-per-identity", "2", "--device", "cpu"),
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert finished.returncode == 0, finished.stderr
    assert re.search(r"epoch 2/2: loss \d+\.\d+", finished.stdout)
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["processes"] == 2
    evaluate.main(evaluate.Arguments(out / "checkpoint.pt", device="cpu"))
    evaluated = json.loads((out / "evaluation/metrics.json").read_text())
    assert evaluated["descriptors"] == metrics["descriptors"]
