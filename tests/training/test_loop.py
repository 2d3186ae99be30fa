"""Training loop with the toy method: results, bit-exact resumption, locks, and refused arguments."""

import json
import os
import shutil
import signal
import time
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from processes import CONTEXT, waiting
from sets import write_set
from stmi_layers.training import Machine, Outputs, Schedule, load_split, loop, read_checkpoint, save_checkpoint
from stmi_layers.training.device import choose_device
from stmi_layers.training.dropout import drop_modalities, modality_draws
from stmi_layers.training.epoch import warn_of_batches
from stmi_layers.training.files import locked
from stmi_layers.training.optimisation import Ledger, build_optimizer, rate
from toy_method.model import Toy
from toy_method.settings import Settings
from toy_runs import DATA, MACHINE, SCHEDULE, assert_same_weights, train_toy, weights


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("set"))


def test_a_run_writes_its_results(folder: Path, tmp_path: Path):
    entries: list[dict] = []
    settings = Settings(agreement=True, reads_captions=True)
    metrics, model = train_toy(folder, tmp_path / "run", settings=settings, log=entries.append)
    assert set(metrics) == {"whole", "text", "all"}
    tmp_path = tmp_path / "run"
    assert sorted(os.listdir(tmp_path)) == ["checkpoint.pt", "metrics.json", "settings.json"]
    written = json.loads((tmp_path / "metrics.json").read_text())
    assert written["headline"] == "whole"
    assert written["descriptors"]["text"]["mAP"] == metrics["text"].mAP
    assert (written["epochs"], written["processes"]) == (3, 1)
    assert written["best_epoch_by_test"]["epoch"] in (2, 3)
    assert written["watch"] == {"scale": model.scale.item()}
    kept = read_checkpoint(tmp_path / "checkpoint.pt")
    assert kept.history == entries
    assert kept.records == json.loads((tmp_path / "settings.json").read_text())
    assert kept.records["facts"]["num_identities"] == 5
    assert kept.records["schedule"]["rates"] == {"strengths": 1e-2}
    for name, value in model.state_dict().items():
        assert torch.equal(value, kept.model[name])
    assert [entry["epoch"] for entry in entries] == [1, 2, 3]
    assert ["mAP" in entry for entry in entries] == [False, True, True]
    for entry in entries:
        assert entry["losses"].keys() == {"whole", "text", "agreement"}
        assert entry["loss"] == pytest.approx(sum(entry["losses"].values()))


def test_without_a_test_split_it_trains_alone(folder: Path, tmp_path: Path):
    from stmi_layers.training import facts_of, fit

    train = load_split(replace(DATA, root=folder), "train")
    model = Toy(Settings(), facts_of(train, DATA.modalities))
    assert fit(model, train, schedule=SCHEDULE, machine=MACHINE, out=tmp_path / "run") == {}
    assert sorted(os.listdir(tmp_path / "run")) == ["checkpoint.pt", "settings.json"]
    with pytest.raises(ValueError, match="protocol must be given with a test split"):
        fit(model, train, train, schedule=SCHEDULE, machine=MACHINE, out=tmp_path / "other")


def test_training_lowers_the_loss(folder: Path, tmp_path: Path):
    schedule = replace(SCHEDULE, epochs=12, learning_rate=1e-2)
    train_toy(folder, tmp_path, schedule=schedule, machine=replace(MACHINE, evaluate_every=12))
    losses = [entry["loss"] for entry in read_checkpoint(tmp_path / "checkpoint.pt").history]
    assert losses[-1] < losses[0]


def test_a_seed_fixes_the_result_and_the_machine_does_not_change_it(folder: Path, tmp_path: Path):
    first, _ = train_toy(folder, tmp_path / "a")
    machine = replace(MACHINE, workers=2, evaluate_every=1, cache=False)
    second, _ = train_toy(folder, tmp_path / "b", machine=machine)
    assert first["whole"].mAP == second["whole"].mAP
    assert_same_weights(tmp_path / "a", tmp_path / "b")
    train_toy(folder, tmp_path / "c", schedule=replace(SCHEDULE, seed=4))
    assert any(not torch.equal(value, weights(tmp_path / "c")[name]) for name, value in weights(tmp_path / "a").items())


def test_a_step_is_the_one_written_out(folder: Path, tmp_path: Path):
    """One epoch again by hand: seeds, batches, loss, clipping, rates and decay of every group."""
    from stmi_layers.training import Objective, collate, facts_of
    from stmi_layers.training.sampler import IdentitySampler

    schedule = replace(SCHEDULE, epochs=1, warmup_epochs=0.5, clip_norm=0.5)
    train_toy(folder, tmp_path, schedule=schedule)
    train = load_split(replace(DATA, root=folder), "train", augment=schedule.augmentation(), seed=3)
    torch.manual_seed(3)
    model = Toy(Settings(), facts_of(train, DATA.modalities))
    objective = Objective(model.widths, 5, schedule)
    plain = [p for p in model.parameters() if p is not model.scale] + list(objective.parameters())
    plain = [parameter for parameter in plain if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        [
            {"params": plain, "lr": 2e-3, "weight_decay": 0.05},
            {"params": [model.scale], "lr": 1e-2, "weight_decay": 0.0},
        ]
    )
    batches = list(IdentitySampler(train.labels, 4, 2, seed=3))
    assert len(batches) == 3
    for index, indices in enumerate(batches):
        batch = collate([train[number] for number in indices])
        loss = objective(model(batch), batch.labels)["whole"]
        optimizer.zero_grad()
        loss.backward()
        norm = torch.stack([p.grad.norm() for p in [*plain, model.scale]]).norm()
        for parameter in [*plain, model.scale]:
            parameter.grad.mul_(min(1.0, 0.5 / (norm.item() + 1e-6)))
        for group, start in zip(optimizer.param_groups, (2e-3, 1e-2), strict=True):
            group["lr"] = start * rate((index + 1) / 3, 0.5)
        optimizer.step()
    kept = read_checkpoint(tmp_path / "checkpoint.pt")
    for name, value in model.state_dict().items():
        torch.testing.assert_close(kept.model[name], value, msg=name)


def train_until_killed(folder: Path, out: Path, schedule: Schedule) -> None:
    loop.save_checkpoint = waiting(loop.save_checkpoint, schedule.epochs)
    train_toy(folder, out, schedule=schedule)


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_weights(folder: Path, tmp_path: Path):
    schedule = replace(SCHEDULE, epochs=40, modality_dropout=0.3)
    train_toy(folder, tmp_path / "whole", schedule=schedule)
    process = CONTEXT.Process(target=train_until_killed, args=(folder, tmp_path / "killed", schedule))
    process.start()
    deadline = time.monotonic() + 300
    while not (tmp_path / "killed" / "checkpoint.pt").exists():
        assert time.monotonic() < deadline, "no checkpoint appeared"
        assert process.is_alive(), "the run ended before it could be killed"
        time.sleep(0.001)
    process.kill()
    process.join()
    assert read_checkpoint(tmp_path / "killed" / "checkpoint.pt").epoch < 40
    resumed, _ = train_toy(folder, tmp_path / "killed", schedule=schedule, resume=True)
    assert_same_weights(tmp_path / "whole", tmp_path / "killed")
    again, _ = train_toy(folder, tmp_path / "whole", schedule=schedule, resume=True)  # all epochs are done
    assert resumed["whole"].mAP == again["whole"].mAP


def test_a_run_that_stops_in_an_epoch_resumes_to_the_same_weights(folder: Path, tmp_path: Path):
    train_toy(folder, tmp_path / "whole")

    def stop(entry: dict) -> None:
        if entry["epoch"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_toy(folder, tmp_path / "stopped", log=stop)
    assert read_checkpoint(tmp_path / "stopped" / "checkpoint.pt").epoch == 1
    train_toy(folder, tmp_path / "stopped", resume=True)
    assert_same_weights(tmp_path / "whole", tmp_path / "stopped")


def test_what_does_not_resume_is_named(folder: Path, tmp_path: Path):
    train_toy(folder, tmp_path, schedule=replace(SCHEDULE, epochs=1))
    with pytest.raises(FileExistsError, match="holds a run already: continue it with resume=True"):
        train_toy(folder, tmp_path, schedule=replace(SCHEDULE, epochs=1))
    message = r"made with other settings(.|\n)*schedule\.epochs: 1 -> 3\n  method\.width: 8 -> 16"
    with pytest.raises(ValueError, match=r"made with other settings") as caught:
        train_toy(folder, tmp_path, settings=Settings(width=16), resume=True)
    assert "schedule.epochs: 1 -> 3" in str(caught.value), message
    assert "method.width: 8 -> 16" in str(caught.value)
    path = tmp_path / "checkpoint.pt"
    kept = read_checkpoint(path)
    older = {**kept.records["schedule"], "momentum": 0.9}
    del older["margin"]
    save_checkpoint(path, kept._replace(records={**kept.records, "schedule": older}))
    with pytest.raises(
        ValueError, match=r"schedule\.margin is missing in the checkpoint\n  schedule\.momentum is unknown"
    ):
        train_toy(folder, tmp_path, schedule=replace(SCHEDULE, epochs=1), resume=True)
    save_checkpoint(path, kept._replace(optimizer={"state": {}, "param_groups": []}))
    with pytest.raises(ValueError, match=r"checkpoint\.pt must hold the state of this optimizer; received another"):
        train_toy(folder, tmp_path, schedule=replace(SCHEDULE, epochs=1), resume=True)


def test_a_run_resumes_by_another_way_to_the_same_data(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    schedule = replace(SCHEDULE, epochs=1)
    train_toy(folder, tmp_path / "out", schedule=schedule)
    monkeypatch.chdir(folder.parent)
    train_toy(Path(folder.name), tmp_path / "out", schedule=schedule, resume=True)


def test_resuming_nothing_starts_a_run_with_a_warning(folder: Path, tmp_path: Path):
    message = r"checkpoint\.pt does not exist: nothing to resume, .* starts at epoch 1"
    with pytest.warns(UserWarning, match=message) as warned:
        train_toy(folder, tmp_path, schedule=replace(SCHEDULE, epochs=1), resume=True)
    assert warned[0].filename == train_toy.__code__.co_filename, "it names the line that called `train`"
    assert read_checkpoint(tmp_path / "checkpoint.pt").epoch == 1


def test_a_folder_in_use_is_refused_and_free_afterwards(folder: Path, tmp_path: Path):
    def second(entry: dict) -> None:
        with pytest.raises(BlockingIOError, match=f"{tmp_path} is in use by another run"):
            train_toy(folder, tmp_path, resume=True)

    train_toy(folder, tmp_path, log=second)
    with locked(tmp_path):
        pass


def hold(folder: Path, child: Connection) -> None:
    with locked(folder):
        number = os.fork()
        if number:
            child.send(number)
        time.sleep(300)


@pytest.mark.slow
def test_the_death_of_a_run_frees_its_folder_though_its_loaders_live_on(tmp_path: Path):
    here, there = CONTEXT.Pipe()
    process = CONTEXT.Process(target=hold, args=(tmp_path, there))
    process.start()
    assert here.poll(300)
    child = here.recv()
    try:
        with (
            pytest.raises(BlockingIOError, match=rf"in use by another run \(process {process.pid} on"),
            locked(tmp_path),
        ):
            pass
        process.kill()
        process.join()
        with locked(tmp_path):
            pass
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_folder_that_cannot_be_written_is_refused_before_the_training(folder: Path, tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file/run cannot be written"):
        train_toy(folder, tmp_path / "file" / "run")


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_losses_and_gradients_that_are_not_finite_end_the_run(what: str, folder: Path, tmp_path: Path, monkeypatch):
    forward, calls = Toy.forward, []

    def broken(self: Toy, batch) -> Outputs:
        outputs = forward(self, batch)
        calls.append(self.training)
        if sum(calls) == 5:  # the second step of the second epoch
            whole = outputs.features["whole"]
            wrong = whole * torch.nan if what == "loss" else whole + whole.detach() - _infinite_gradient(whole)
            return outputs._replace(features={"whole": wrong})
        return outputs

    monkeypatch.setattr(Toy, "forward", broken)
    value = {"loss": r"the loss is nan \(in whole\)", "gradient": "the norm of the gradient is (inf|nan)"}[what]
    with pytest.raises(
        FloatingPointError,
        match=rf"{value} in epoch 2, step 2, items \w+.* and 3 more; the checkpoint of epoch 1 is kept in .*"
        "Lower learning_rate or the rates of the schedule, or check these items",
    ):
        train_toy(folder, tmp_path)
    assert all(value.isfinite().all() for value in weights(tmp_path).values() if value.is_floating_point())


def _infinite_gradient(value: Tensor) -> Tensor:
    """Return `value`, with a gradient that is infinite."""
    copy = value.clone()
    copy.register_hook(lambda gradient: gradient * torch.inf)
    return copy


def test_modality_dropout_leaves_a_modality_and_depends_on_seed_epoch_and_index_alone(folder: Path):
    from stmi_layers.training import collate

    train = load_split(replace(DATA, root=folder), "train")
    batch = collate([train[index] for index in (3, 7, 1)])
    draws = modality_draws(20, 2, seed=0, epoch=5)
    dropped = drop_modalities(batch, draws, 1.0)
    assert dropped.present is not None
    assert dropped.present.sum(dim=1).tolist() == [1, 1, 1]
    assert torch.equal(dropped.present.long().argmax(dim=1), draws[[3, 7, 1]].argmax(dim=1))
    assert not dropped.images[~dropped.present].any()
    assert torch.equal(dropped.images[dropped.present], batch.images[dropped.present])
    alone = drop_modalities(collate([train[7]]), draws, 1.0)
    assert torch.equal(alone.present[0], dropped.present[1])
    assert drop_modalities(batch, draws, 0.0).present is None
    assert not torch.equal(draws, modality_draws(20, 2, seed=0, epoch=6))
    assert not torch.equal(draws, modality_draws(20, 2, seed=1, epoch=5))
    many = modality_draws(20_000, 3, seed=0, epoch=0)
    shape = torch.zeros(20_000, 3, 1, 1, 1)
    wide = batch._replace(images=shape, indices=torch.arange(20_000))
    kept = drop_modalities(wide, many, 0.3).present.float().mean().item()
    assert kept == pytest.approx(1 - 0.3 + 0.3**3 / 3, abs=0.01)
    missing = torch.ones(20_000, 3, dtype=torch.bool)
    missing[:, 1] = False
    still = drop_modalities(wide._replace(present=missing), many, 0.9).present
    assert not still[:, 1].any()
    assert still.any(dim=1).all()


def test_modality_dropout_takes_part_in_training(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    forward, shares = Toy.forward, []

    def watched(self: Toy, batch) -> Outputs:
        if self.training:
            shares.append(1.0 if batch.present is None else batch.present.float().mean().item())
        else:
            assert batch.present is None
        return forward(self, batch)

    monkeypatch.setattr(Toy, "forward", watched)
    train_toy(folder, tmp_path, schedule=replace(SCHEDULE, modality_dropout=0.5))
    assert 0.5 < sum(shares) / len(shares) < 0.9


def test_captions_are_encoded_once_per_split(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    encode, calls = Toy.encode, []

    def counted(self: Toy, captions) -> Tensor | None:
        calls.append(len(captions))
        assert not self.training
        assert not torch.is_grad_enabled()
        return encode(self, captions)

    monkeypatch.setattr(Toy, "encode", counted)
    train_toy(folder, tmp_path, settings=Settings(reads_captions=True))
    assert calls == [20, 20]


def test_losses_are_read_every_few_steps_and_the_step_at_fault_is_named(folder: Path):
    items = load_split(replace(DATA, root=folder), "train").items
    ledger, one = Ledger(3, items, "nothing is kept", 4), torch.ones(())
    ledger.add(one, {"whole": one}, one, torch.tensor([0, 1]))
    ledger.add(one * torch.inf, {"whole": one, "term": one * torch.inf}, one, torch.tensor([7, 3]))
    assert ledger.losses == []  # nothing has been read: the host has not waited
    message = (
        rf"the loss is inf \(in term\) in epoch 4, step 2, items {items[7].name}, {items[3].name}; nothing is kept"
    )
    with pytest.raises(FloatingPointError, match=message):
        ledger.add(one, {"whole": one}, one, torch.tensor([2]))
    healthy = Ledger(2, items, "", 1)
    for number in range(3):
        parts = {"whole": number * one} | ({"term": 4 * one} if number == 1 else {})
        healthy.add(sum(parts.values()), parts, one, torch.tensor([0]))
        assert len(healthy.losses) == (2 if number else 0)
    healthy.read()
    assert healthy.losses == [0, 5, 2]
    assert healthy.means() == {"whole": 1, "term": 4}


class TwoGroups(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.old, self.new, self.frozen = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2).requires_grad_(False)


def test_groups_get_their_rates_and_decay_and_new_comes_first():
    model, head = TwoGroups(), nn.Linear(2, 2)
    groups = {"backbone": [*model.old.parameters(), *model.frozen.parameters()], "new": [*model.new.parameters()]}
    schedule = Schedule(learning_rate=0.1, rates={"backbone": 0.01}, no_decay=("backbone",), optimizer="adam")
    optimizer = build_optimizer(model, groups, head, schedule)
    assert type(optimizer) is torch.optim.Adam
    first, second = optimizer.param_groups
    assert [id(p) for p in first["params"]] == [id(p) for p in (*model.new.parameters(), *head.parameters())]
    assert [id(p) for p in second["params"]] == [id(p) for p in model.old.parameters()]
    assert (first["initial_lr"], second["initial_lr"]) == (0.1, 0.01)
    assert (first["weight_decay"], second["weight_decay"]) == (0.05, 0.0)


def test_sgd_has_momentum_and_adds_the_decay_to_the_gradient():
    model = nn.Linear(1, 1, bias=False)
    schedule = Schedule(learning_rate=0.1, weight_decay=0.5, optimizer="sgd")
    optimizer = build_optimizer(model, {"new": [*model.parameters()]}, nn.Identity(), schedule)
    with torch.no_grad():
        model.weight.fill_(2.0)
    weight, speed = 2.0, 0.0
    for gradient in (1.0, -3.0, 0.5):
        model.weight.grad = torch.full((1, 1), gradient)
        optimizer.step()
        speed = 0.9 * speed + gradient + 0.5 * weight
        weight -= 0.1 * speed
        assert model.weight.item() == pytest.approx(weight)


def test_groups_that_are_not_the_parameters_are_refused():
    model, head = TwoGroups(), nn.Linear(2, 2)
    some = {"backbone": list(model.old.parameters())}
    with pytest.raises(ValueError, match=r"hold every trainable parameter .* once; 2 differ: new\.weight \(0 times\)"):
        build_optimizer(model, some, head, Schedule())
    twice = {"new": list(model.parameters()), "backbone": [model.old.bias]}
    with pytest.raises(ValueError, match=r"1 differ: old\.bias \(2 times\)"):
        build_optimizer(model, twice, head, Schedule())
    with pytest.raises(ValueError, match=r"rates must be by names among \['new'\]; received \['tower'\]"):
        build_optimizer(model, {"new": list(model.parameters())}, head, Schedule(rates={"tower": 1.0}))
    with pytest.raises(ValueError, match=r"no_decay must be by names among \['new'\]; received \['tower'\]"):
        build_optimizer(model, {"new": list(model.parameters())}, head, Schedule(no_decay=("tower",)))


def test_the_learning_rate_rises_then_falls_to_a_tenth():
    assert rate(0.05, 0.1) == pytest.approx(0.5)
    assert rate(0.1, 0.1) == pytest.approx(1)
    assert rate(1, 0.1) == pytest.approx(0.1)
    assert rate(0.55, 0.1) == pytest.approx(0.55)
    assert rate(0.5, 0.0) < 1
    assert rate(0.5, 2.0) == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1; received 0"),
        ({"modality_dropout": 1.5}, r"modality_dropout must be a probability in \[0, 1\]; received 1.5"),
        ({"optimizer": "lion"}, "optimizer must be one of 'adamw', 'adam', 'sgd'; received 'lion'"),
        ({"clip_norm": 0.0}, "clip_norm must be positive, or None for no clipping; received 0"),
        ({"rates": {"new": -1.0}}, r"rates\['new'\] must be finite and at least 0; received -1"),
        (
            {"feature_weights": {"U": float("nan")}},
            r"feature_weights\['U'\] must be finite and at least 0; received nan",
        ),
        ({"learning_rate": float("inf")}, "learning_rate must be finite and at least 0; received inf"),
    ],
)
def test_schedules_that_make_no_sense_are_refused(changes: dict, message: str):
    with pytest.raises(ValueError, match=message):
        Schedule(**changes)


@pytest.mark.parametrize("changes", [{"evaluate_every": 0}, {"workers": -1}, {"threads": -1}])
def test_machines_that_make_no_sense_are_refused(changes: dict):
    with pytest.raises(ValueError, match=f"{next(iter(changes))}.* received .*{next(iter(changes.values()))}"):
        Machine(**changes)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_named():
    with pytest.raises(ValueError, match=r"device must be cpu or auto .* received 'cuda:1'"):
        choose_device("cuda:1")


@pytest.mark.parametrize(("identities", "images"), [(2, 1), (1, 2)])
def test_batches_without_triplets_are_warned_of(folder: Path, identities: int, images: int):
    dataset = load_split(replace(DATA, root=folder), "train")
    schedule = replace(SCHEDULE, identities_per_batch=identities, images_per_identity=images)
    with pytest.warns(UserWarning, match=f"no triplets.*identities_per_batch={identities}, images_per_.*={images}"):
        warn_of_batches(dataset, schedule)


def test_identities_with_few_images_are_warned_of(folder: Path, tmp_path: Path):
    few = tmp_path / "set"
    shutil.copytree(folder, few)
    (few / "train" / "RGB" / "000000_cam1_0_00.png").unlink()
    (few / "train" / "NI" / "000000_cam1_0_00.png").unlink()
    with pytest.warns(
        UserWarning, match="1 of 5 identities have fewer images than images_per_identity=4: 0; their images"
    ):
        train_toy(
            few,
            tmp_path / "out",
            data=replace(DATA, captions="off"),
            schedule=replace(SCHEDULE, epochs=1, images_per_identity=4),
        )
