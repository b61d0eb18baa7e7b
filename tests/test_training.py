"""Optimizer groups: layer scales and position embeddings do not decay, and Muon gets matrices alone."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from families import FAMILIES
from optimizers import membership, stock_optimizer
from torch import nn
from ultralytics import YOLO
from ultralytics.engine.trainer import BaseTrainer

from yolo_lightbackbones import layers
from yolo_lightbackbones.plugin import training


def detector(family: str) -> Any:
    torch.manual_seed(0)
    return YOLO(f"yolov5n_{family}.yaml").model.train()


@pytest.mark.parametrize("name", ["SGD", "AdamW", "MuSGD"])
@pytest.mark.parametrize("family", FAMILIES)
def test_groups(family: str, name: str) -> None:
    model = detector(family)
    optimizer = stock_optimizer(model, name)
    before = membership(optimizer, model)
    moved = training.regroup(optimizer, model)
    after = membership(optimizer, model)
    assert moved == sum(before[key] != after[key] for key in before)

    matrix = "muon" if name == "MuSGD" else "weight"
    modules = dict(model.model[0].named_modules())
    shapes = {key: parameter.shape for key, parameter in model.named_parameters()}
    for key, kind in after.items():
        if not key.startswith("model.0."):
            assert kind == before[key], "the neck is Ultralytics' own business"
            continue
        owner, _, leaf = key.removeprefix("model.0.").rpartition(".")
        module = modules[owner]
        if "layer_scale" in leaf or owner.endswith((".pos", ".pos1", ".pos2")):
            assert kind == "bn", key
        elif isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
            assert kind == ("bn" if leaf == "weight" else "bias"), key
        elif leaf == "bias":
            assert kind == "bias", key
        else:  # depthwise and circular kernels have one input per output; Muon makes orthogonal what has more
            assert kind == (matrix if shapes[key][1] > 1 else "weight"), key
    spared = {key for key in after if "layer_scale" in key or ".pos1." in key or ".pos." in key}
    assert spared or family not in {"conv2former", "parcnet", "parc"}
    if spared:
        assert {before[key] for key in spared} <= {"weight", "muon"}, "without us they would have decayed"
    if name == "MuSGD":
        depthwise = [module for module in modules.values() if isinstance(module, nn.Conv2d) and module.groups > 1]
        assert moved >= len(depthwise)
        assert depthwise or family not in {"edgevit", "parcnet", "repvit", "conv2former", "parc"}


def test_a_module_may_list_parameters_of_its_own() -> None:
    class Scaled(nn.Module):
        no_weight_decay_names = ("scale",)

        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(2, 2))

    assert layers.no_weight_decay(Scaled()) == {"scale"}
    assert layers.no_weight_decay(nn.Sequential(Scaled())) == {"0.scale"}


def test_models_without_our_backbones_are_left_alone() -> None:
    model = YOLO("yolov8n.yaml").model
    optimizer = stock_optimizer(model, "MuSGD")
    assert training.regroup(optimizer, model) == 0


def test_other_optimizers_are_told_apart() -> None:
    model = detector("conv2former")
    groups = [{"params": list(model.parameters()), "param_group": "weight"}]
    with pytest.raises(ValueError, match="no group 'bn'"):
        training.regroup(torch.optim.SGD(groups, lr=0.1), model)


@pytest.mark.parametrize("name", ["AdamW", "MuSGD"])
def test_saved_states_keep_the_stock_order_and_resume(name: str) -> None:
    """Interrupted and resumed, with the state in a stock optimizer's order in between, training goes the same way."""

    def step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for param in model.parameters():
            param.grad = torch.randn(param.shape, generator=generator)
        optimizer.step()

    model = detector("parcnet")
    optimizer = stock_optimizer(model, name)
    stock = copy.deepcopy(optimizer.state_dict()["param_groups"])
    assert training.regroup(optimizer, model) > 0
    step(model, optimizer, 0)
    weights, state = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    assert [group["params"] for group in state["param_groups"]] == [group["params"] for group in stock]
    step(model, optimizer, 1)

    resumed = detector("parcnet")
    resumed.load_state_dict(weights)
    again = stock_optimizer(resumed, name)
    again.load_state_dict(copy.deepcopy(state))  # torch keeps the tensors it is given
    training.regroup(again, resumed)
    step(resumed, again, 1)
    for (key, expected), seen in zip(model.state_dict().items(), resumed.state_dict().values(), strict=True):
        torch.testing.assert_close(seen, expected, rtol=0, atol=0, msg=key)

    # And back into the optimizer that is in use, as Ultralytics does after a loss of NaN.
    groups, after = membership(optimizer, model), copy.deepcopy(model.state_dict())
    model.load_state_dict(weights)
    optimizer.load_state_dict(copy.deepcopy(state))
    assert membership(optimizer, model) == groups
    torch.testing.assert_close(optimizer.state_dict()["state"], state["state"], rtol=0, atol=0)
    step(model, optimizer, 1)
    for key, seen in model.state_dict().items():
        torch.testing.assert_close(seen, after[key], rtol=0, atol=0, msg=key)
    with pytest.raises(ValueError, match="doesn't match the size"):
        optimizer.load_state_dict(stock_optimizer(detector("repvit"), name).state_dict())


@pytest.fixture(scope="module")
def parcnet() -> Any:
    return detector("parcnet")


def stepped(model: nn.Module, optimizer: torch.optim.Optimizer, *seeds: int) -> None:
    """Updates with gradients of these seeds."""
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        for param in model.parameters():
            param.grad = torch.randn(param.shape, generator=generator)
        optimizer.step()


def run(start: Any, name: str, *, ours: bool, decay: float = 0.05) -> tuple[Any, torch.optim.Optimizer]:
    model = copy.deepcopy(start)
    trainer = SimpleNamespace(args=SimpleNamespace(lr0=0.01), data={"nc": 80})
    optimizer = BaseTrainer.build_optimizer(trainer, model, name=name, lr=0.01, decay=decay)
    if ours:
        assert training.regroup(optimizer, model) > 0
    return model, optimizer


@pytest.mark.parametrize(
    ("resumed_with", "late"),
    [(False, False), (True, False), (True, True)],
    ids=["resumed without", "resumed with, loaded before regrouping", "resumed with, loaded behind"],
)
@pytest.mark.parametrize("saved_with", [False, True], ids=["saved without", "saved with"])
@pytest.mark.parametrize("name", ["SGD", "AdamW", "MuSGD"])
def test_checkpoints_resume_with_and_without_the_plugin(
    name: str, saved_with: bool, resumed_with: bool, late: bool, parcnet: Any
) -> None:
    model, optimizer = run(parcnet, name, ours=saved_with)
    stepped(model, optimizer, 0, 1)
    state = copy.deepcopy(optimizer.state_dict())
    again, other = run(model, name, ours=resumed_with and late)
    other.load_state_dict(copy.deepcopy(state))
    if resumed_with and not late:
        training.regroup(other, again)
    resumed_state = other.state_dict()
    assert [group["params"] for group in resumed_state["param_groups"]] == [g["params"] for g in state["param_groups"]]
    stepped(again, other, 2)
    if saved_with == resumed_with:
        stepped(model, optimizer, 2)
        for (key, expected), seen in zip(model.state_dict().items(), again.state_dict().values(), strict=True):
            torch.testing.assert_close(seen, expected, rtol=0, atol=0, msg=key)
    else:
        moved = sum(not torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
        assert moved > 100
        assert all(param.isfinite().all() for param in again.parameters())


def test_states_of_musgd_mean_the_same_with_and_without_the_plugin(parcnet: Any) -> None:
    """MuSGD's average and sum of gradients, of a stock run and of ours, after the same gradients without decay."""
    stock_model, stock = run(parcnet, "MuSGD", ours=False, decay=0.0)
    our_model, ours = run(parcnet, "MuSGD", ours=True, decay=0.0)
    for model, optimizer in ((stock_model, stock), (our_model, ours)):
        stepped(model, optimizer, 0, 1, 2)
    expected, seen = stock.state_dict()["state"], ours.state_dict()["state"]
    assert list(expected) == list(seen)
    for number, state in expected.items():
        assert state.keys() == seen[number].keys()
        torch.testing.assert_close(dict(seen[number]), dict(state), rtol=1e-4, atol=1e-6)
    ours.load_state_dict(stock.state_dict())
    moved = next(p for n, p in our_model.named_parameters() if n.endswith("depthwise.conv.weight"))
    twin = next(p for n, p in stock_model.named_parameters() if n.endswith("depthwise.conv.weight"))
    assert set(ours.state[moved]) == {"momentum_buffer"}
    torch.testing.assert_close(ours.state[moved]["momentum_buffer"], stock.state[twin]["momentum_buffer_SGD"])


def test_groups_and_parameters_may_be_added_later(parcnet: Any) -> None:
    """As for a layer that is unfrozen, or a loss with weights of its own."""

    def longer() -> tuple[Any, torch.optim.Optimizer, list[nn.Parameter]]:
        model, optimizer = run(parcnet, "MuSGD", ours=True)
        more = [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))]
        optimizer.add_param_group({"params": [more[0]], "lr": 0.5})
        optimizer.param_groups[0]["params"].append(more[1])
        model.more = nn.ParameterList(more)
        return model, optimizer, more

    model, optimizer, more = longer()
    stepped(model, optimizer, 0)
    state = optimizer.state_dict()
    assert len(state["param_groups"]) == len(optimizer.param_groups)
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    assert numbers == list(range(len(list(model.parameters()))))
    last = state["param_groups"][-1]["params"]
    torch.testing.assert_close(state["state"][last[0]]["momentum_buffer"], optimizer.state[more[0]]["momentum_buffer"])
    again, other, others = longer()
    other.load_state_dict(copy.deepcopy(state))
    for mine, theirs in zip(again.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(other.state[mine], optimizer.state[theirs], rtol=1e-4, atol=1e-6)
    assert others[0] is other.param_groups[-1]["params"][0]


@pytest.mark.parametrize("name", ["SGD", "AdamW", "MuSGD"])
@pytest.mark.parametrize("family", FAMILIES)
def test_groups_without_labels_are_told_by_what_they_do(family: str, name: str) -> None:
    """As Ultralytics made them before 8.4.50, and as trainers of others do."""
    model = detector(family)
    labelled, bare = stock_optimizer(model, name), stock_optimizer(model, name)
    for group in bare.param_groups:
        del group["param_group"]
    assert training.regroup(bare, model) == training.regroup(labelled, model)
    for mine, theirs in zip(bare.param_groups, labelled.param_groups, strict=True):
        assert [id(param) for param in mine["params"]] == [id(param) for param in theirs["params"]]


@pytest.mark.parametrize("decay", [0.0, 0.05])
def test_an_optimizer_of_one_group_is_told_once_where_it_matters(decay: float) -> None:
    model = detector("conv2former")
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=decay)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        training.on_pretrain_routine_end(SimpleNamespace(optimizer=optimizer, model=model))
    assert len(caught) == (decay > 0), "without weight decay, nothing has to move"
    if caught:
        assert "has no group 'bn' to move parameters of our layers to, only weight." in str(caught[0].message)


def test_groups_are_chosen_by_the_rate_they_start_from() -> None:
    """Resumed at the first update of a warm-up, when every rate is 0."""
    model = detector("repvit")
    optimizer = stock_optimizer(model, "MuSGD")
    rates = {}
    for group in optimizer.param_groups:
        group["initial_lr"], group["lr"] = group["lr"], 0.0
        rates |= {id(param): group["initial_lr"] for param in group["params"]}
    assert len(set(rates.values())) > 1, "MuSGD has a higher rate for the head"
    assert training.regroup(optimizer, model) > 0
    for group in optimizer.param_groups:
        assert {rates[id(param)] for param in group["params"]} <= {group["initial_lr"]}


def tiny_data(folder: Path) -> Path:
    pytest.importorskip("sklearn")
    from yolo_lightbackbones.datasets.digits import build_digits

    digits = build_digits(folder / "digits", train_images=8, val_images=2)
    (data := folder / "data.yaml").write_text(f"path: {digits}\ntrain: images/train\nval: images/val\nnc: 10\n")
    return data


TINY = {"imgsz": 64, "batch": 4, "optimizer": "MuSGD", "workers": 0, "amp": False, "plots": False}


@pytest.mark.slow
def test_a_training_run_recovers_from_nan(tmp_path: Path) -> None:
    epochs = []

    def spoil(trainer: Any) -> None:
        epochs.append(trainer.epoch)
        if epochs.count(1) == 1:
            trainer.loss = torch.tensor(torch.nan)

    run = YOLO("yolov5n_parcnet.yaml")
    run.add_callback("on_train_epoch_end", spoil)
    run.train(data=str(tiny_data(tmp_path)), project=str(tmp_path), name="run", epochs=3, **TINY)
    assert epochs == [0, 1, 1, 2]


@pytest.mark.slow
def test_a_training_run_is_regrouped_and_resumes(tmp_path: Path) -> None:
    seen = []

    def look(trainer: Any) -> None:
        seen.append(membership(trainer.optimizer, trainer.model))

    def interrupt(trainer: Any) -> None:
        if trainer.epoch == 0:
            raise KeyboardInterrupt

    run = YOLO("yolov5n_parcnet.yaml")
    run.add_callback("on_train_start", look)
    run.add_callback("on_model_save", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run.train(data=str(tiny_data(tmp_path)), project=str(tmp_path), name="run", epochs=2, **TINY)
    last = tmp_path / "run" / "weights" / "last.pt"
    again = YOLO(last)
    again.add_callback("on_train_start", look)
    again.train(resume=True)
    assert seen[0] == seen[1]
    assert {kind for key, kind in seen[1].items() if ".pos1." in key} == {"bn"}
