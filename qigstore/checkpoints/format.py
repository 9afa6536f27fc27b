"""What a checkpoint's folder holds: `state.safetensors` and `manifest.json`.

The payload is an ordinary safetensors file, so that any reader of that format gets the arrays. A
state that several ranks saved together has one such file a rank, `shard-00000.safetensors` and so
on. The manifest says everything else, and the digest of everything. It is one line::

    {"blake3":"<64 hex digits>","checkpoint":{...canonical JSON...}}

The digest is BLAKE3 of exactly the bytes of the inner object, so that it is verified before a
byte of it is parsed. Canonical JSON: keys sorted, no blanks, ASCII, no NaN.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, cast, get_args
from uuid import UUID

from blake3 import blake3

from qigstore.checkpoints.arrays import ITEM_BYTES
from qigstore.checkpoints.json_text import FLOAT_NAMES, canonical_json, float_out
from qigstore.errors import CheckpointCorrupt, CheckpointError, CheckpointFormatError
from qigstore.records import CheckpointKind

__all__ = [
    "FORMAT",
    "HEADER_BYTES_MAX",
    "MANIFEST",
    "MANIFEST_BYTES_MAX",
    "PAYLOAD",
    "RANKS_MAX",
    "VERSION",
    "VERSION_SHARDED",
    "FileInfo",
    "Manifest",
    "Sharding",
    "Slot",
    "TensorInfo",
    "WholeArray",
    "decode_manifest",
    "encode_manifest",
    "is_payload",
    "layout",
    "root_digest",
    "shard_name",
]

FORMAT = "qigstore-checkpoint"
VERSION = 2
"""1 had the digest of the whole payload file where now its root stands."""
VERSION_SHARDED = 3
"""Of a manifest with a file a rank, which readers of 2 must refuse by name."""
PAYLOAD = "state.safetensors"
MANIFEST = "manifest.json"

HEADER_BYTES_MAX = 100_000_000
"""The limit of the safetensors format itself."""
MANIFEST_BYTES_MAX = 256 << 20
RANKS_MAX = 100_000

_SHARD = re.compile(r"shard-[0-9]{5}\.safetensors")
_PREFIX, _MIDDLE, _END = b'{"blake3":"', b'","checkpoint":', b"}\n"
_BODY = len(_PREFIX) + 64 + len(_MIDDLE)


@dataclass(frozen=True, slots=True)
class FileInfo:
    """Size and digest of one file; the payload's is a root over its parts (`root_digest`)."""

    bytes: int
    blake3: str


class TensorInfo(NamedTuple):
    """What the manifest says of one array: its stored dtype and shape, its digest, its file."""

    dtype: str
    shape: tuple[int, ...]
    blake3: str
    file: str = PAYLOAD


@dataclass(frozen=True, slots=True)
class WholeArray:
    """An array of a state, whose chunks lie in the files: where each begins, by its name there."""

    dtype: str
    shape: tuple[int, ...]
    chunks: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Sharding:
    """How the ranks that saved a state divided it among their files.

    Attributes:
        arrays: the arrays of the state.
        ranks: for each rank the skeleton of what it saved as its own.
    """

    arrays: Mapping[str, WholeArray]
    ranks: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Slot:
    """Where one array lies in the payload file."""

    name: str
    code: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Everything known of a checkpoint except its arrays."""

    id: UUID
    store: UUID
    session: str
    attempt: int
    step: int
    kind: CheckpointKind
    phi: float | None
    kappa_eff: float | None
    regime: str | None
    created_at: datetime
    parent: UUID | None
    weights_finite: bool
    not_finite: tuple[str, ...]
    """Names of arrays with NaN or ±inf in them (the first few)."""
    files: Mapping[str, FileInfo]
    tensors: Mapping[str, TensorInfo]
    skeleton: Any
    metadata: Mapping[str, Any]
    sharding: Sharding | None = None
    """None: one process saved it, into one file."""
    digest: str = ""
    """BLAKE3 of the inner object, hex; set where it was read from or encoded to bytes."""

    @property
    def payload(self) -> FileInfo:
        """Size and digest of the payload file, where there is one (see `of`)."""
        (file,) = self.files.values()
        return file

    @property
    def bytes(self) -> int:
        """Bytes of all payload files."""
        return sum(file.bytes for file in self.files.values())

    @property
    def arrays(self) -> Mapping[str, WholeArray]:
        """The arrays of the state by the names in its skeleton, however many files hold them."""
        if self.sharding is not None:
            return self.sharding.arrays
        return {
            name: WholeArray(info.dtype, info.shape, {name: (0,) * len(info.shape)})
            for name, info in self.tensors.items()
        }

    def of(self, name: str) -> Manifest:
        """The manifest of one of the files by itself, as if there were no other."""
        tensors = {key: info for key, info in self.tensors.items() if info.file == name}
        return replace(self, files={name: self.files[name]}, tensors=tensors, sharding=None)


def shard_name(rank: int) -> str:
    """The file of a rank."""
    return f"shard-{rank:05d}.safetensors"


def is_payload(name: str) -> bool:
    """Whether a file of that name may be a payload."""
    return name == PAYLOAD or _SHARD.fullmatch(name) is not None


# ---------------------------------------------------------------- the payload's header


def layout(arrays: Mapping[str, tuple[str, tuple[int, ...]]]) -> tuple[bytes, tuple[Slot, ...]]:
    """The safetensors header for arrays of these dtypes and shapes, and where each one goes.

    Wider types come first, so that every array is aligned to its item size. The layout follows
    from names, dtypes and shapes alone: a header that says anything else is a lie.

    Raises:
        CheckpointError: an unknown dtype, or a header larger than any reader would take.
    """
    return _layout(tuple(arrays.items()))


@lru_cache(maxsize=1)  # a state has the same layout from save to save
def _layout(
    items: tuple[tuple[str, tuple[str, tuple[int, ...]]], ...],
) -> tuple[bytes, tuple[Slot, ...]]:
    arrays, sizes = dict(items), {}
    for name, (code, shape) in items:
        if code not in ITEM_BYTES:
            raise CheckpointError(f"array {name!r:.60} has the unknown dtype {code!r:.40}")
        item = ITEM_BYTES[code]
        sizes[name] = item, item * math.prod(shape)
    places, at = [], 0
    for name in sorted(arrays, key=lambda name: (-sizes[name][0], name)):
        places.append(Slot(name, *arrays[name], at, at + sizes[name][1]))
        at = places[-1].stop
    header = _header(places)
    base = len(header)
    return header, tuple(
        Slot(slot.name, slot.code, slot.shape, base + slot.start, base + slot.stop)
        for slot in places
    )


def root_digest(header: bytes, digests: Iterable[str]) -> str:
    """BLAKE3 of the header and, in the order of the file, of every array's digest.

    It covers every byte of the file, as its own digest would, and no byte is hashed twice: while
    training runs, hashing is what a save takes from it.
    """
    return blake3(header).update(bytes.fromhex("".join(digests))).hexdigest()


def _header(places: Sequence[Slot]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": {"format": "pt", "writer": FORMAT}}
    for slot in places:
        entries[slot.name] = {
            "dtype": slot.code,
            "shape": list(slot.shape),
            "data_offsets": [slot.start, slot.stop],
        }
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > HEADER_BYTES_MAX:
        raise CheckpointError(
            f"the header of {len(places)} arrays takes {len(text)} bytes; safetensors allows "
            f"{HEADER_BYTES_MAX}. Put small arrays together, or shorten their names."
        )
    return len(text).to_bytes(8, "little") + text


# ---------------------------------------------------------------- the manifest


def encode_manifest(manifest: Manifest) -> tuple[bytes, str]:
    """The manifest's file and its digest.

    Raises:
        CheckpointError: larger than any reader would take.
    """
    floats = {"phi": manifest.phi, "kappa_eff": manifest.kappa_eff}
    body = canonical_json(
        {
            "format": {"name": FORMAT, "version": _version(manifest)},
            "id": str(manifest.id),
            "store": str(manifest.store),
            "session": manifest.session,
            "attempt": manifest.attempt,
            "step": manifest.step,
            "kind": manifest.kind,
            **{name: None if v is None else float_out(v) for name, v in floats.items()},
            "regime": manifest.regime,
            "created_at": manifest.created_at.astimezone(UTC).isoformat(),
            "parent": str(manifest.parent) if manifest.parent else None,
            "weights_finite": manifest.weights_finite,
            "not_finite": list(manifest.not_finite),
            "files": {n: {"bytes": f.bytes, "blake3": f.blake3} for n, f in manifest.files.items()},
            "tensors": {name: _tensor_out(info) for name, info in manifest.tensors.items()},
            "skeleton": manifest.skeleton,
            "metadata": manifest.metadata,
            **({} if manifest.sharding is None else {"sharding": _sharding_out(manifest.sharding)}),
        }
    )
    if len(body) > MANIFEST_BYTES_MAX - 256:
        raise CheckpointError(
            f"the state's structure takes {len(body)} bytes of manifest, the limit is "
            f"{MANIFEST_BYTES_MAX}. Store long lists of numbers as NumPy arrays."
        )
    digest = blake3(body).hexdigest()
    return _PREFIX + digest.encode() + _MIDDLE + body + _END, digest


def _version(manifest: Manifest) -> int:
    return VERSION if manifest.sharding is None else VERSION_SHARDED


def _tensor_out(info: TensorInfo) -> dict[str, Any]:
    where = {} if info.file == PAYLOAD else {"file": info.file}
    return {"dtype": info.dtype, "shape": list(info.shape), "blake3": info.blake3, **where}


def _sharding_out(sharding: Sharding) -> dict[str, Any]:
    arrays = {
        name: {
            "dtype": whole.dtype,
            "shape": list(whole.shape),
            "chunks": {key: list(offsets) for key, offsets in whole.chunks.items()},
        }
        for name, whole in sharding.arrays.items()
    }
    return {"arrays": arrays, "ranks": list(sharding.ranks)}


def decode_manifest(path: Path | str, data: bytes) -> Manifest:
    """Read a manifest, its own digest first.

    Raises:
        CheckpointCorrupt: not the bytes that were written.
        CheckpointFormatError: intact, but of another format or a newer version.
    """
    if not (data.startswith(_PREFIX) and data.endswith(_END)) or (
        data[_BODY - len(_MIDDLE) : _BODY] != _MIDDLE
    ):
        raise CheckpointCorrupt(
            path, "the manifest's frame", expected="a qigstore manifest", found=data[:24]
        )
    body = memoryview(data)[_BODY : -len(_END)]
    said = data[len(_PREFIX) : _BODY - len(_MIDDLE)].decode("ascii", "replace")
    digest = blake3(body).hexdigest()
    if said != digest:
        raise CheckpointCorrupt(path, "BLAKE3 of the manifest", expected=said, found=digest)
    try:
        fields = json.loads(bytes(body))
    except (ValueError, RecursionError) as error:
        raise CheckpointCorrupt(path, "the manifest", expected="JSON", found=error) from None
    _check_format(path, fields)
    try:
        return _manifest(fields, digest)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise CheckpointCorrupt(
            path, "the manifest's fields", expected=FORMAT, found=repr(error)[:200]
        ) from None


def _check_format(path: Path | str, fields: Any) -> None:
    named = fields.get("format") if isinstance(fields, dict) else None
    if not isinstance(named, dict) or named.get("name") != FORMAT:
        raise CheckpointFormatError(
            path,
            f"expected the manifest of a {FORMAT}, found {named!r:.80}. It was left as it is; "
            "restore another one (`qigstore checkpoints list`).",
        )
    version = named.get("version")
    if version not in {VERSION, VERSION_SHARDED} or type(version) is not int:
        raise CheckpointFormatError(
            path,
            f"written in checkpoint format {version!r:.20}; this version of qigstore reads "
            f"{VERSION} and {VERSION_SHARDED}. Upgrade qigstore to load it; it was left as it is.",
        )
    if (version == VERSION_SHARDED) != ("sharding" in fields):
        raise CheckpointCorrupt(
            path, "format", expected="a sharding in format 3 alone", found=version
        )


def _manifest(fields: dict[str, Any], digest: str) -> Manifest:
    if fields["kind"] not in get_args(CheckpointKind):
        raise ValueError(f"kind {fields['kind']!r:.40}")
    created_at = datetime.fromisoformat(fields["created_at"])
    if created_at.tzinfo is None:
        raise ValueError("created_at without a time zone")
    files = {n: FileInfo(_count(f["bytes"]), _hex(f["blake3"])) for n, f in fields["files"].items()}
    tensors = {
        name: TensorInfo(
            _text(t["dtype"]), _shape(t["shape"]), _hex(t["blake3"]), _text(t.get("file", PAYLOAD))
        )
        for name, t in fields["tensors"].items()
    }
    sharding = _sharding_in(fields["sharding"], tensors) if "sharding" in fields else None
    shards = {PAYLOAD} if sharding is None else {shard_name(n) for n in range(len(sharding.ranks))}
    if set(files) != shards or not {info.file for info in tensors.values()} <= shards:
        raise ValueError(f"files {sorted(files)!r:.80}")
    return Manifest(
        id=UUID(fields["id"]),
        store=UUID(fields["store"]),
        session=_text(fields["session"]),
        attempt=_count(fields["attempt"]),
        step=_count(fields["step"]),
        kind=cast("CheckpointKind", fields["kind"]),
        phi=_float_in(fields["phi"]),
        kappa_eff=_float_in(fields["kappa_eff"]),
        regime=None if fields["regime"] is None else _text(fields["regime"]),
        created_at=created_at,
        parent=UUID(fields["parent"]) if fields["parent"] is not None else None,
        weights_finite=fields["weights_finite"] is True,
        not_finite=tuple(_text(name) for name in fields["not_finite"]),
        files=files,
        tensors=tensors,
        skeleton=fields["skeleton"],
        metadata=dict(fields["metadata"]),
        sharding=sharding,
        digest=digest,
    )


def _sharding_in(fields: dict[str, Any], tensors: Mapping[str, TensorInfo]) -> Sharding:
    """The division, whose chunks must exist, lie in their arrays and fill them."""
    arrays = {}
    for name, told in fields["arrays"].items():
        whole = WholeArray(
            _text(told["dtype"]),
            _shape(told["shape"]),
            {key: _shape(offsets) for key, offsets in told["chunks"].items()},
        )
        for key, offsets in whole.chunks.items():
            chunk = tensors[key]
            ends = [at + size for at, size in zip(offsets, chunk.shape, strict=True)]
            inside = all(end <= size for end, size in zip(ends, whole.shape, strict=True))
            if not inside or chunk.dtype != whole.dtype:
                raise ValueError(f"chunk {key!r:.80} is none of array {name!r:.80}")
        if sum(math.prod(tensors[key].shape) for key in whole.chunks) != math.prod(whole.shape):
            raise ValueError(f"the chunks of array {name!r:.80} do not fill it")
        arrays[name] = whole
    ranks = fields["ranks"]
    if not isinstance(ranks, list) or not 0 < len(ranks) <= RANKS_MAX:
        raise ValueError("a sharding without ranks")
    return Sharding(arrays, tuple(ranks))


def _float_in(value: Any) -> float | None:
    if value is None:
        return None
    return FLOAT_NAMES[value] if isinstance(value, str) else float(value)


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**63:
        raise ValueError(f"{value!r:.40} is no count")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.40} is no text")
    return value


def _hex(value: Any) -> str:
    if len(bytes.fromhex(_text(value))) != 32:
        raise ValueError(f"{value!r:.80} is no BLAKE3 digest")
    return cast("str", value)


def _shape(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) > 64:
        raise ValueError(f"{value!r:.80} is no shape")
    return tuple(_count(n) for n in value)
