"""torch states: dtypes NumPy lacks, tied weights, optimizers. Run where torch is installed."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qigstore.checkpoints import CheckpointStore, SaveInfo
from qigstore.checkpoints.arrays import tensor_identity
from qigstore.checkpoints.format import PAYLOAD
from qigstore.errors import CheckpointError, CheckpointMismatch

torch = pytest.importorskip("torch", reason="torch is an extra (qigstore[torch])")

DTYPES = [
    "float32", "float64", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "complex64",
    "complex128", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "bool",
]  # fmt: skip


def through_disk(folder: Path, state: Any) -> Any:
    store = CheckpointStore(folder)
    info = SaveInfo(session_name="torch", session_id=1, attempt=1, step=0)
    return store.load(store.save(state, info=info).path)


@pytest.fixture(params=[True, False], ids=["here", "on a device"])
def here(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors whose numbers are in this process, and such that have to be fetched."""
    if not request.param:
        monkeypatch.setattr(torch.Tensor, "is_cpu", False)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("shape", [(), (0, 3), (4, 5)], ids=str)
def test_every_dtype_comes_back_bit_for_bit(tmp_path: Path, name: str, shape: Any) -> None:
    given = (torch.arange(20) % 7)[: 1 if shape == () else 20].to(getattr(torch, name))
    given = given[: torch.Size(shape).numel()].reshape(shape)
    found = through_disk(tmp_path, {"t": given})["t"]
    assert (found.dtype, found.shape) == (given.dtype, given.shape)
    assert bytes(found.reshape(-1).view(torch.uint8)) == bytes(
        given.contiguous().reshape(-1).view(torch.uint8)
    )


@pytest.mark.usefixtures("here")
def test_views_conjugates_and_gradients(tmp_path: Path) -> None:
    plain = torch.arange(12.0).reshape(3, 4)
    state = {
        "transposed": plain.T,
        "conjugate": torch.complex(plain, plain).conj(),
        "leaf": torch.ones(2, requires_grad=True),
        "computed": torch.ones(2, requires_grad=True) * 2,
        "parameter": torch.nn.Parameter(torch.ones(3)),
        "frozen": torch.nn.Parameter(torch.ones(3), requires_grad=False),
    }
    found = through_disk(tmp_path, state)
    for name, tensor in state.items():
        assert torch.equal(found[name], tensor)
        assert type(found[name]) is type(tensor)
        assert found[name].requires_grad == tensor.requires_grad
        assert found[name].is_leaf


def test_tied_weights_are_stored_once_and_stay_tied(tmp_path: Path) -> None:
    model = torch.nn.Sequential(
        torch.nn.Linear(4, 4, bias=False), torch.nn.Linear(4, 4, bias=False)
    )
    model[1].weight = model[0].weight
    found = through_disk(tmp_path, model.state_dict())
    assert found["0.weight"] is found["1.weight"]


@pytest.mark.parametrize("shape", [(0, 3), (2, 3)], ids=str)
def test_tensors_are_told_apart_by_their_memory_also_where_the_objects_are_short_lived(
    shape: tuple[int, int],
) -> None:
    one, other = torch.zeros(shape), torch.zeros(shape)
    assert tensor_identity(one.detach()) == tensor_identity(one.detach())
    assert tensor_identity(one.detach()) != tensor_identity(other.detach())


def test_model_optimizer_and_generator_go_on_where_they_were(tmp_path: Path) -> None:
    torch.manual_seed(1)

    def make() -> tuple[Any, Any]:
        model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8))
        return model, torch.optim.AdamW(model.parameters(), lr=1e-2)

    def train(model: Any, optimizer: Any) -> Any:
        loss = model(torch.randn(16, 4)).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    model, optimizer = make()
    train(model, optimizer)
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "rng": torch.get_rng_state(),
    }
    found = through_disk(tmp_path, state)
    expected = [train(model, optimizer) for _ in range(3)]
    again, resumed = make()
    again.load_state_dict(found["model"])
    resumed.load_state_dict(found["optimizer"])
    torch.set_rng_state(found["rng"])
    assert torch.equal(
        torch.stack([train(again, resumed) for _ in range(3)]), torch.stack(expected)
    )
    assert type(found["model"]) is OrderedDict
    assert found["model"]._metadata == state["model"]._metadata


def test_a_state_dict_is_filled_in_place_and_the_model_has_the_weights(tmp_path: Path) -> None:
    torch.manual_seed(1)
    given, model = torch.nn.Linear(3, 4), torch.nn.Linear(3, 4)
    store = CheckpointStore(tmp_path)
    info = SaveInfo(session_name="torch", session_id=1, attempt=1, step=0)
    path = store.save({"model": given.state_dict(), "step": 3}, info=info).path
    weight = model.weight
    store.load(path, part=("model",), into=model.state_dict())
    assert model.weight is weight
    assert torch.equal(model.weight, given.weight)
    assert torch.equal(model.bias, given.bias)
    other = torch.nn.Linear(3, 5)
    before = other.weight.detach().clone()
    with pytest.raises(CheckpointMismatch, match=r"shape: expected \(5, 3\), found \(4, 3\)"):
        store.load(path, part=("model",), into=other.state_dict())
    assert torch.equal(other.weight, before)
    half = torch.nn.Linear(3, 4).bfloat16()
    with pytest.raises(CheckpointMismatch, match=r"expected torch.bfloat16, found float32"):
        store.load(path, part=("model",), into=half.state_dict())


def test_numpy_arrays_are_filled_from_tensors_and_the_other_way(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    info = {"session_name": "torch", "session_id": 1, "attempt": 1, "step": 0}
    tensor, array = torch.arange(3.0), np.arange(3, dtype=np.float32)
    path = store.save({"w": tensor}, info=SaveInfo(**info)).path
    into = {"w": np.zeros(3, np.float32)}
    assert store.load(path, into=into)["w"].tolist() == [0, 1, 2]
    path = store.save({"w": array}, info=SaveInfo(**info)).path
    assert torch.equal(store.load(path, into={"w": torch.zeros(3)})["w"], tensor)
    path = store.save({"a": array, "w": tensor.bfloat16()}, info=SaveInfo(**info)).path
    kept = np.zeros(3, np.float32)
    with pytest.raises(CheckpointMismatch, match=r"\['w'\]: dtype: .* found torch.bfloat16"):
        store.load(path, into={"a": kept, "w": np.zeros(3, np.float32)})
    assert kept.tolist() == [0, 0, 0]


def test_one_tensor_is_read_by_its_name(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    info = SaveInfo(session_name="torch", session_id=1, attempt=1, step=0)
    given = {"a": torch.arange(6).bfloat16(), "b": torch.zeros(0, 3)}
    with store.open(store.save(given, info=info).path) as opened:
        assert sorted(opened) == ["a", "b"]
        assert all(torch.equal(opened[name], tensor) for name, tensor in given.items())
        assert opened["a"].dtype == torch.bfloat16


def test_weights_that_are_not_finite_are_found(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    for name in ("bfloat16", "float16", "float8_e4m3fn", "float8_e5m2"):
        tensor = torch.ones(5).to(getattr(torch, name))
        info = {"session_name": "torch", "session_id": 1, "attempt": 1, "step": 0}
        assert store.save({"t": tensor}, info=SaveInfo(**info)).weights_finite
        bad = torch.tensor([1.0, float("nan")]).to(getattr(torch, name))
        assert not store.save({"t": bad}, info=SaveInfo(**info)).weights_finite


def test_the_format_s_own_torch_loader_reads_the_payload(tmp_path: Path) -> None:
    loader = pytest.importorskip("safetensors.torch", reason="needs torch")
    store = CheckpointStore(tmp_path)
    info = SaveInfo(session_name="torch", session_id=1, attempt=1, step=0)
    tensor = torch.arange(6).to(torch.bfloat16).reshape(2, 3)
    saved = store.save({"w": tensor}, info=info)
    assert torch.equal(loader.load_file(saved.path / PAYLOAD)["w"], tensor)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: torch.eye(3).to_sparse(), "dense"),
        (lambda: torch.ones(2, device="meta"), "dense"),
        (lambda: torch.ones(2).as_subclass(type("Own", (torch.Tensor,), {})), "subclass"),
    ],
    ids=["sparse", "meta", "subclass"],
)
def test_tensors_without_plain_values_are_refused_with_their_place(make: Any, why: str) -> None:
    with pytest.raises(CheckpointError, match=rf"state\['t'\]: .*{why}"):
        CheckpointStore(Path("nowhere")).stage({"t": make()})


def test_a_training_on_cuda_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("torch finds no CUDA device")
    from qigstore.checkpoints import random_states, set_random_states

    def step(model: Any, optimizer: Any) -> float:
        optimizer.zero_grad()
        loss = model(torch.randn(8, 4, device="cuda")).square().mean()
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    def fresh() -> tuple[Any, Any]:
        model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Dropout(0.5)).cuda()
        return model, torch.optim.Adam(model.parameters())

    model, optimizer = fresh()
    for _ in range(3):
        step(model, optimizer)
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "random": random_states(),
    }
    found = through_disk(tmp_path, state)
    wanted = [step(model, optimizer) for _ in range(5)]
    other, again = fresh()
    other.load_state_dict(found["model"])
    again.load_state_dict(found["optimizer"])
    set_random_states(found["random"])
    assert [step(other, again) for _ in range(5)] == wanted
