"""Distributed steps equal those of one process: shared batches, gathered rows, synchronised norms, one checkpoint."""

import copy
import json
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from processes import METHOD, in_processes, start, waiting
from sets import write_set
from stmi_layers import GatedExperts
from stmi_layers.training import (
    IdentitySampler,
    describe,
    facts_of,
    fit,
    load_split,
    loop,
    read_checkpoint,
    whole_batch,
)
from stmi_layers.training.distributed import (
    Share,
    by_first,
    interleave,
    join,
    mean_over_processes,
    rank,
    share,
    whole_mean,
)
from stmi_layers.training.norms import synchronised_norms
from toy_method.model import Toy, build
from toy_method.settings import Settings
from toy_runs import DATA, MACHINE, SCHEDULE, assert_same_weights, train_toy

PROCESSES = 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set in which modalities and captions are missing, most of them in the share of one process."""
    root = write_set(tmp_path_factory.mktemp("set"))
    for name in ("000000_cam1_0_00", "000003_cam1_0_01", "000003_cam2_0_00", "000008_cam2_0_00"):
        split = "train" if name < "000005" else "test"
        (root / split / "NI" / f"{name}.png").unlink()
    text = root / "text" / "train.json"
    text.write_text(text.read_text().replace("colour 3", "").replace("colour 1", ""))
    return root


INCOMPLETE = replace(DATA, missing_modality="absent")


@pytest.fixture(scope="module")
def together(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of two processes, started once for the tests below."""
    out = tmp_path_factory.mktemp("together")
    in_processes(work_together, str(folder), str(out))
    return out


def work_together(folder: str, out: str) -> None:
    os.environ["XDG_CACHE_HOME"] = f"{out}/cache"
    join("cpu")
    parts()
    describes(folder, out)
    trains(folder, f"{out}/run")


def parts() -> None:
    """What the single functions do, checked in every process."""
    assert join("cpu") == join("cpu") == torch.device("cpu")
    rows = torch.full((1, 2), float(rank()), requires_grad=True)
    gathered = whole_batch(rows)
    assert torch.equal(gathered, torch.tensor([[0.0, 0.0], [1.0, 1.0]]))
    (gathered * torch.tensor([[1.0], [10.0]]) * (rank() + 1)).sum().backward()
    assert torch.equal(rows.grad, torch.full((1, 2), (10.0 if rank() else 1.0) * (1 + 2)))
    assert whole_batch(torch.tensor([rank() == 0])).tolist() == [True, False]

    # Of two means, the first over 1 sample here and 3 there, the second over none at all.
    means = torch.tensor([float(rank()), 0.0], requires_grad=True)
    averaged = whole_mean(means, torch.tensor([1 + 2 * rank(), 0]))
    assert averaged.tolist() == [0.75, 0.0]
    averaged[0].backward()
    assert means.grad.tolist() == [2 * (0.75 if rank() else 0.25), 0.0]  # of both processes, which DDP averages

    own = torch.tensor([[float(index)] for index in share(5)])
    assert interleave(own, 5, torch.device("cpu")).flatten().tolist() == [0, 1, 2, 3, 4]
    assert mean_over_processes({"a": float(rank()), f"b{rank()}": 3.0}) == {"a": 0.5, "b0": 3.0, "b1": 3.0}

    assert by_first(lambda: 10 + rank()) == 10
    with pytest.raises(ValueError, match="from the first"):
        by_first(lambda: refuse("from the first" if rank() == 0 else "from another"))
    norms(nn.BatchNorm1d(3, momentum=None).double(), torch.randn(7, 3, dtype=torch.float64), [5, 2])
    norms(nn.BatchNorm2d(2, affine=False).double(), torch.randn(6, 2, 3, 4, dtype=torch.float64), [0, 6])
    norms(nn.BatchNorm3d(2).double(), torch.randn(6, 2, 2, 2, 2, dtype=torch.float64), [3, 3])
    norms(nn.BatchNorm2d(2).double(), torch.randn(0, 2, 3, 3, dtype=torch.float64), [0, 0])
    absent_rows()


def absent_rows() -> None:
    """Compare experts that leave out absent features with one process; one of the two knows of no absent feature."""
    torch.manual_seed(0)
    experts = GatedExperts(4, 3, num_heads=2).double()
    features, present = torch.randn(6, 3, 4, dtype=torch.float64), torch.ones(6, 3, dtype=torch.bool)
    present[[0, 1, 1], [0, 0, 2]] = False
    whole, inputs, part = copy.deepcopy(experts), features.clone().requires_grad_(), features.clone().requires_grad_()
    own = slice(0, 5) if rank() == 0 else slice(5, 6)
    factor = torch.arange(features.numel(), dtype=features.dtype).view_as(features).sin()
    with synchronised_norms(experts):
        result = experts(part[own], present[own] if rank() == 0 else None)
        (result * factor[own]).sum().backward()
    expected = whole(inputs, present)
    (expected * factor).sum().backward()
    torch.testing.assert_close(result, expected[own])
    torch.testing.assert_close(part.grad[own], inputs.grad[own])
    for name, value in experts.state_dict().items():
        torch.testing.assert_close(value, whole.state_dict()[name], msg=name)


def refuse(message: str) -> None:
    raise ValueError(message)


def norms(norm: nn.Module, rows: Tensor, sizes: list[int]) -> None:
    """Compare a norm on unequal shares with torch's own on all rows: values, gradients, statistics."""
    torch.manual_seed(0)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    for tensor in (rows, *norm.parameters(), *norm.buffers()):
        dist.broadcast(tensor.data, src=0)
    whole, kind = type(norm)(norm.num_features, momentum=norm.momentum, affine=norm.affine).double(), type(norm)
    whole.load_state_dict(norm.state_dict())
    start = sum(sizes[: rank()])
    inputs, part = rows.clone().requires_grad_(), rows[start : start + sizes[rank()]].clone().requires_grad_()
    factor = torch.arange(rows.numel(), dtype=rows.dtype).view_as(rows).sin()
    with synchronised_norms(norm):
        for _ in range(2):
            result = norm(part)
            (result * factor[start : start + sizes[rank()]]).sum().backward()
        assert list(norm.state_dict()) == list(whole.state_dict())
        norm.eval()
        evaluated = norm(rows)
        norm.train()
    assert type(norm) is kind
    for _ in range(2):
        expected = whole(inputs)
        (expected * factor).sum().backward()
    torch.testing.assert_close(result, expected[start : start + sizes[rank()]])
    torch.testing.assert_close(part.grad, inputs.grad[start : start + sizes[rank()]], rtol=1e-9, atol=1e-12)
    for name, parameter in norm.named_parameters():
        dist.all_reduce(parameter.grad)
        torch.testing.assert_close(parameter.grad, whole.get_parameter(name).grad)
    torch.testing.assert_close(norm.state_dict(), whole.state_dict())
    torch.testing.assert_close(evaluated, whole.eval()(rows))


def test_rows_are_gathered_with_their_gradient_and_norms_see_all_of_them(together: Path):
    """What fails in a process fails here, with its own traceback."""
    assert together.exists()


SETTINGS = Settings(agreement=True, reads_captions=True)


def trains(folder: str, out: str) -> None:
    schedule, forward = replace(SCHEDULE, epochs=2, modality_dropout=0.3), Toy.forward
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Toy, "forward", lambda self, batch: forward(self, batch._replace(images=batch.images.double())))
        train_toy(Path(folder), Path(out), settings=SETTINGS, data=INCOMPLETE, schedule=schedule, dtype=torch.float64)


def test_two_processes_end_with_the_weights_of_one(together: Path, folder: Path, tmp_path: Path):
    """In float64, because Adam makes whole steps of the rounding in gradients that are 0, as before a norm."""
    trains(str(folder), str(tmp_path))
    assert_same_weights(tmp_path, together / "run", rtol=1e-9, atol=1e-12)
    one, two = (read_checkpoint(out / "checkpoint.pt").history[-1] for out in (tmp_path, together / "run"))
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-9)
    assert two["mAP"] == pytest.approx(one["mAP"], abs=1e-9)
    written = [json.loads((out / "metrics.json").read_text()) for out in (tmp_path, together / "run")]
    assert [content["processes"] for content in written] == [1, 2]


def test_evaluation_is_shared_out(together: Path, folder: Path, tmp_path: Path):
    found = [torch.load(together / f"{number}.pt") for number in range(PROCESSES)]
    describes(str(folder), str(tmp_path))
    expected, read = torch.load(tmp_path / "0.pt")
    assert len(read) == 19
    for descriptors, items in found:
        assert len(items) == 10
        for name, rows in expected.items():
            torch.testing.assert_close(descriptors[name], rows)
    assert sorted({*found[0][1], *found[1][1]}) == list(range(19))


def describes(folder: str, out: str) -> None:
    device = join("cpu")
    test = load_split(replace(INCOMPLETE, root=Path(folder)), "test")
    test.items, test.labels = test.items[:-1], test.labels[:-1]  # a number that cannot be shared out evenly
    torch.manual_seed(0)
    model = build(SETTINGS, facts_of(test, INCOMPLETE.modalities))
    read, forward = [], model.forward

    def watched(batch):
        read.extend(batch.indices.tolist())
        return forward(batch)

    model.forward = watched
    descriptors = describe(model, test, device=device, batch_size=4)
    torch.save((descriptors, read), f"{out}/{rank()}.pt")


def shards(folder: str, out: str) -> None:
    from torch.distributed.fsdp import fully_shard

    join("cpu")
    train = load_split(replace(INCOMPLETE, root=Path(folder)), "train")
    model = build(Settings(), facts_of(train, INCOMPLETE.modalities))
    fully_shard(model.mix)
    with pytest.raises(
        ValueError, match=r"2 are sharded by fully_shard, the first is mix\.weight.*leave fully_shard out"
    ):
        fit(model, train, schedule=SCHEDULE, machine=MACHINE, out=Path(out) / "run")


@pytest.mark.slow
def test_sharded_parameters_are_refused_with_the_reason(folder: Path, tmp_path: Path):
    in_processes(shards, str(folder), str(tmp_path))
    assert not (tmp_path / "run" / "checkpoint.pt").exists()


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
    message = r"identities_per_batch must be a multiple of the number of processes, 2; received 3"
    with pytest.raises(ValueError, match=message):
        Share(IdentitySampler([0, 0, 1, 1, 2, 2], 3, 2), 0, 2)


def test_alone_everything_is_the_identity():
    rows = torch.randn(3, 2)
    assert whole_batch(rows) is rows
    assert whole_mean(rows, rows) is rows
    assert interleave(rows, 3, torch.device("cpu")) is rows
    assert share(3) == [0, 1, 2]
    assert by_first(lambda: 5) == 5
    assert mean_over_processes({"a": 1.0}) == {"a": 1.0}
    norm = nn.BatchNorm1d(2)
    with synchronised_norms(norm):
        assert type(norm) is nn.BatchNorm1d


def agent(folder: str, out: str) -> None:
    """What torchrun does for two processes and two restarts; forked ones need not import torch for seconds."""
    options = {"run_id": "test", "rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "start_method": METHOD}
    nodes = {"min_nodes": 1, "max_nodes": 1, "local_addr": "127.0.0.1"}
    config = LaunchConfig(nproc_per_node=PROCESSES, max_restarts=2, **nodes, **options)
    elastic_launch(config, program)(folder, out)


def program(folder: str, out: str) -> None:
    """Of one process of a round: it trains, and fails after the end of the second round."""
    number, of_round = os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"]
    (Path(out).parent / f"pid.{number}").write_text(str(os.getpid()))
    if of_round == "0":
        loop.save_checkpoint = waiting(loop.save_checkpoint, 30)
    train_toy(
        Path(folder),
        Path(out),
        settings=Settings(agreement=True),
        data=INCOMPLETE,
        schedule=replace(SCHEDULE, epochs=30),
        log=lambda entry: print("epoch", entry["epoch"], of_round, flush=True),
    )
    if (number, of_round) == ("1", "1"):
        sys.exit("fails after the end")


def refused(folder: str, out: str) -> None:
    with pytest.raises(FileExistsError, match="holds a run already: continue it with resume=True"):
        train_toy(Path(folder), Path(out), data=INCOMPLETE)


def test_an_error_of_the_first_process_ends_all_with_its_message(folder: Path, tmp_path: Path):
    (tmp_path / "checkpoint.pt").touch()
    in_processes(refused, str(folder), str(tmp_path))


@pytest.mark.slow
def test_torchrun_goes_on_from_the_last_epoch_after_a_kill_and_after_the_end(folder: Path, tmp_path: Path):
    """One process is killed in the first round, and one fails after the end of the second: the third writes again."""
    says = tmp_path / "said.txt"
    run = start(agent, str(folder), str(tmp_path / "run"), says=says)
    deadline, path = time.monotonic() + 300, tmp_path / "run" / "checkpoint.pt"
    while not path.exists():
        assert time.monotonic() < deadline, "no checkpoint appeared"
        assert run.is_alive(), says.read_text()
        time.sleep(0.01)
    os.kill(int((tmp_path / "pid.1").read_text()), signal.SIGKILL)
    run.join(timeout=300)
    text = says.read_text()
    assert run.exitcode == 0, text
    assert "fails after the end" in text
    epochs = [tuple(map(int, line.split()[1:])) for line in text.splitlines() if line.startswith("epoch ")]
    before = [epoch for epoch, restart in epochs if restart == 0]
    after = [epoch for epoch, restart in epochs if restart == 1]
    assert after[-1] == 30
    assert before[-1] <= after[0] <= before[-1] + 1, epochs
    assert after[0] > 1
    assert [entry["epoch"] for entry in read_checkpoint(path).history] == list(range(1, 31))
    assert sorted(os.listdir(tmp_path / "run")) == ["checkpoint.pt", "metrics.json", "settings.json"]
