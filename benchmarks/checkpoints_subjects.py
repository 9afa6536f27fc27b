"""What saves and loads the same arrays in `benchmarks.checkpoints`: ours, the peers and the floor.

A subject saves in two halves: `begin` is what training waits for, `finish` what is left until the
bytes are on the disk. Each is asked for the durable state that it offers; where it offers none
(`torch.save`, safetensors, npz), the benchmark fsyncs the file and its folder for it.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["FLOOR", "OURS", "SUBJECTS", "Arrays", "Subject", "arrays_of", "forget", "sync_tree"]

Arrays = dict[str, npt.NDArray[np.float32]]


def arrays_of(megabytes: float, count: int) -> Arrays:
    """That many float32 arrays of that size together, of random numbers."""
    rng = np.random.default_rng(1)
    rows = max(1, int(megabytes * 1e6) // 4 // count // 256)
    return {f"layer.{i}": rng.standard_normal((rows, 256), dtype=np.float32) for i in range(count)}


def _module(name: str) -> Any:
    """A module that need not be installed, without its types."""
    return importlib.import_module(name)


def sync_tree(folder: Path) -> None:
    """Make every file and folder below durable."""
    for place, _, names in os.walk(folder):
        for path in (*(Path(place) / name for name in names), Path(place)):
            fd = os.open(path, os.O_RDONLY)
            os.fsync(fd)
            os.close(fd)


def forget(folder: Path) -> None:
    """Drop what the page cache holds of the files below."""
    for place, _, names in os.walk(folder):
        for name in names:
            fd = os.open(Path(place) / name, os.O_RDONLY)
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)


class Subject:
    """One way to save and load arrays."""

    title = ""
    needs: tuple[str, ...] = ()
    verifies = "nothing"

    def __init__(self, arrays: Arrays, folder: Path) -> None:
        self.arrays, self.folder = arrays, folder

    def fresh(self) -> None:
        """Remove what the last save left."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()

    @classmethod
    def missing(cls) -> str:
        """Why it cannot run here; empty where it can."""
        absent = [name for name in cls.needs if importlib.util.find_spec(name) is None]
        return f"{', '.join(absent)} not installed" if absent else ""

    def prepare(self) -> None:
        """What the program does once, before its first save, behind training's back."""

    def begin(self) -> Any:
        """What training waits for."""
        raise NotImplementedError

    def finish(self, begun: Any) -> None:
        """Wait until what was begun is durable."""

    def load(self) -> Any:
        """Load everything."""
        raise NotImplementedError

    def load_one(self) -> Any:
        """Load one array; NotImplementedError where only all of them can be had."""
        raise NotImplementedError

    def close(self) -> None:
        """Give back what it holds."""


class Floor(Subject):
    """One write, fsync, rename, fsync of the folder; one read into fresh memory."""

    title = "floor: write+fsync+rename+fsync"

    def __init__(self, arrays: Arrays, folder: Path) -> None:
        super().__init__(arrays, folder)
        self._bytes = np.concatenate([array.ravel() for array in arrays.values()])

    def begin(self) -> Any:
        octets: Any = self._bytes  # some NumPy's stubs know of no buffer
        view = memoryview(octets).cast("B")
        fd = os.open(self.folder / "tmp", os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        while view.nbytes:
            view = view[os.write(fd, view[: 8 << 20]) :]
        os.fsync(fd)
        os.close(fd)
        (self.folder / "tmp").rename(self.folder / "state")
        fd = os.open(self.folder, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)

    def load(self) -> Any:
        return np.fromfile(self.folder / "state", np.float32)

    def load_one(self) -> Any:
        return np.fromfile(
            self.folder / "state", np.float32, count=next(iter(self.arrays.values())).size
        )


class Ours(Subject):
    """`CheckpointManager.save`, then `wait`."""

    title = "qigstore"
    verifies = "every array"

    def __init__(self, arrays: Arrays, folder: Path) -> None:
        super().__init__(arrays, folder)
        from qigstore.checkpoints import CheckpointManager, CheckpointStore

        self.manager = CheckpointManager(
            CheckpointStore(folder), None, session_id=1, session_name="bench", attempt=1
        )
        self._id: Any = None

    def fresh(self) -> None:
        if self._id is not None:
            self.manager.delete_checkpoint(self._id)

    def prepare(self) -> None:
        self.manager.prepare(self.arrays)  # `run.checkpoint` does, at its first call

    def begin(self) -> Any:
        self._id = self.manager.save(self.arrays, step=1)

    def finish(self, begun: Any) -> None:
        self.manager.wait()

    def load(self) -> Any:
        return self.manager.load(self._id)

    def load_one(self) -> Any:
        path = self.manager.store.locate("bench", self._id)
        return self.manager.store.load(path, part=(next(iter(self.arrays)),))

    def close(self) -> None:
        self.manager.close()


class Npz(Subject):
    """`numpy.savez`."""

    title = "numpy.savez + fsync"
    verifies = "CRC-32 of the zip"

    def begin(self) -> Any:
        np.savez(self.folder / "state.npz", **self.arrays)  # type: ignore[arg-type]
        sync_tree(self.folder)

    def load(self) -> Any:
        with np.load(self.folder / "state.npz") as found:
            return {name: found[name] for name in found.files}

    def load_one(self) -> Any:
        with np.load(self.folder / "state.npz") as found:
            return found[next(iter(self.arrays))]


class Safetensors(Subject):
    """`safetensors.numpy.save_file`."""

    title = "safetensors + fsync"
    needs = ("safetensors",)

    def begin(self) -> Any:
        from safetensors.numpy import save_file

        save_file(self.arrays, self.folder / "state.safetensors")
        sync_tree(self.folder)

    def load(self) -> Any:
        from safetensors.numpy import load_file

        return load_file(self.folder / "state.safetensors")

    def load_one(self) -> Any:
        from safetensors import safe_open

        with safe_open(self.folder / "state.safetensors", "np") as file:
            return file.get_tensor(next(iter(self.arrays)))


class _Torch(Subject):
    needs = ("torch",)

    def __init__(self, arrays: Arrays, folder: Path) -> None:
        super().__init__(arrays, folder)
        torch = _module("torch")

        self.tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}


class TorchSave(_Torch):
    """`torch.save`, not durable: what most programs do."""

    title = "torch.save (not durable)"
    durable = False

    def begin(self) -> Any:
        torch = _module("torch")

        torch.save(self.tensors, self.folder / "state.pt")
        if self.durable:
            sync_tree(self.folder)

    def load(self) -> Any:
        torch = _module("torch")

        return torch.load(self.folder / "state.pt", weights_only=True)

    def load_one(self) -> Any:
        torch = _module("torch")

        return torch.load(self.folder / "state.pt", weights_only=True, mmap=True)["layer.0"].clone()


class TorchSaveDurable(TorchSave):
    """`torch.save` and an fsync."""

    title = "torch.save + fsync"
    durable = True


class Dcp(_Torch):
    """`torch.distributed.checkpoint.save`, which fsyncs its files."""

    title = "DCP save"

    def begin(self) -> Any:
        dcp = _module("torch.distributed.checkpoint")

        with _quiet():
            dcp.save(self.tensors, checkpoint_id=self.folder / "dcp", no_dist=True)
        sync_tree(self.folder)

    def load(self) -> Any:
        torch = _module("torch")
        dcp = _module("torch.distributed.checkpoint")

        found = {name: torch.empty_like(tensor) for name, tensor in self.tensors.items()}
        with _quiet():
            dcp.load(found, checkpoint_id=self.folder / "dcp", no_dist=True)
        return found

    def load_one(self) -> Any:
        torch = _module("torch")
        dcp = _module("torch.distributed.checkpoint")

        found = {"layer.0": torch.empty_like(self.tensors["layer.0"])}
        with _quiet():
            dcp.load(found, checkpoint_id=self.folder / "dcp", no_dist=True)
        return found


class DcpAsync(Dcp):
    """`torch.distributed.checkpoint.async_save` in its thread."""

    title = "DCP async_save"

    def __init__(self, arrays: Arrays, folder: Path) -> None:
        super().__init__(arrays, folder)
        dist = _module("torch.distributed")

        if not dist.is_initialized():
            store = dist.HashStore()
            dist.init_process_group("gloo", store=store, rank=0, world_size=1)

    def begin(self) -> Any:
        dcp = _module("torch.distributed.checkpoint")

        with _quiet():
            return dcp.async_save(self.tensors, checkpoint_id=self.folder / "dcp")

    def finish(self, begun: Any) -> None:
        with _quiet():
            begun.result()
        sync_tree(self.folder)


class Orbax(Subject):
    """Orbax's `StandardCheckpointer`, asynchronous as it comes."""

    title = "Orbax async"
    needs = ("jax", "orbax.checkpoint")

    @classmethod
    def missing(cls) -> str:
        for name in ("jax", "orbax"):
            if importlib.util.find_spec(name) is None:
                return f"{name} not installed"
        return ""

    def __init__(self, arrays: Arrays, folder: Path) -> None:
        super().__init__(arrays, folder)
        ocp = _module("orbax.checkpoint")

        self._checkpointer = ocp.StandardCheckpointer()

    def begin(self) -> Any:
        with _quiet():
            self._checkpointer.save(self.folder / "orbax", self.arrays)

    def finish(self, begun: Any) -> None:
        with _quiet():
            self._checkpointer.wait_until_finished()
        sync_tree(self.folder)

    def load(self) -> Any:
        with _quiet():
            return self._checkpointer.restore(self.folder / "orbax")

    def close(self) -> None:
        self._checkpointer.close()


@contextlib.contextmanager
def _quiet() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


FLOOR, OURS = "floor", "qigstore"
SUBJECTS: dict[str, type[Subject]] = {
    FLOOR: Floor,
    OURS: Ours,
    "torch": TorchSave,
    "torch-fsync": TorchSaveDurable,
    "safetensors": Safetensors,
    "npz": Npz,
    "dcp": Dcp,
    "dcp-async": DcpAsync,
    "orbax": Orbax,
}
