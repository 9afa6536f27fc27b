"""What a checkpoint's folder holds: `state.safetensors` and `manifest.json`.

The payload is an ordinary safetensors file, so that any reader of that format gets the arrays.
The manifest says everything else, and the digest of everything. It is one line::

    {"blake3":"<64 hex digits>","checkpoint":{...canonical JSON...}}

The digest is BLAKE3 of exactly the bytes of the inner object, so that it is verified before a
byte of it is parsed. Canonical JSON: keys sorted, no blanks, ASCII, no NaN.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, cast, get_args
from uuid import UUID

import numpy as np
from blake3 import blake3

from qigstore.checkpoints.arrays import ITEM_BYTES
from qigstore.errors import CheckpointCorrupt, CheckpointError, CheckpointFormatError
from qigstore.records import CheckpointKind

__all__ = [
    "FORMAT",
    "HEADER_BYTES_MAX",
    "MANIFEST",
    "MANIFEST_BYTES_MAX",
    "PAYLOAD",
    "VERSION",
    "FileInfo",
    "Manifest",
    "Slot",
    "TensorInfo",
    "canonical_json",
    "decode_manifest",
    "encode_manifest",
    "layout",
    "root_digest",
    "strict_json",
]

FORMAT = "qigstore-checkpoint"
VERSION = 2
"""1 had the digest of the whole payload file where now its root stands."""
PAYLOAD = "state.safetensors"
MANIFEST = "manifest.json"

HEADER_BYTES_MAX = 100_000_000
"""The limit of the safetensors format itself."""
MANIFEST_BYTES_MAX = 256 << 20

_PREFIX, _MIDDLE, _END = b'{"blake3":"', b'","checkpoint":', b"}\n"
_BODY = len(_PREFIX) + 64 + len(_MIDDLE)


@dataclass(frozen=True, slots=True)
class FileInfo:
    """Size and digest of one file; the payload's is a root over its parts (`root_digest`)."""

    bytes: int
    blake3: str


class TensorInfo(NamedTuple):
    """What the manifest says of one array: its stored dtype and shape, and its digest."""

    dtype: str
    shape: tuple[int, ...]
    blake3: str


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
    digest: str = ""
    """BLAKE3 of the inner object, hex; set where it was read from or encoded to bytes."""

    @property
    def payload(self) -> FileInfo:
        """The payload file's size and digest."""
        return self.files[PAYLOAD]


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


# ---------------------------------------------------------------- JSON


def canonical_json(value: Any) -> bytes:
    """Canonical JSON: keys sorted, no blanks, ASCII; NaN and ±inf are refused."""
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    )
    return text.encode("ascii")


def strict_json(value: Any, where: str = "metadata", *, depth: int = 50) -> Any:
    """A value as strict JSON that PostgreSQL takes too: NumPy values as numbers and lists.

    NaN and ±inf become the strings "NaN", "Infinity" and "-Infinity".

    Raises:
        CheckpointError: something that is no JSON, or a text with NUL or half a surrogate pair.
    """
    if depth == 0:
        raise CheckpointError(f"{where}: nested too deep")
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        if not -(2**63) <= value < 2**63:
            raise CheckpointError(f"{where}: an integer of more than 64 bits; give it as text")
        return int(value)
    if isinstance(value, float):
        return _float_out(float(value))
    if isinstance(value, str):
        if "\x00" in value or any("\ud800" <= char <= "\udfff" for char in value):
            raise CheckpointError(f"{where}: a text with NUL or a lone surrogate cannot be stored")
        return str(value)
    if isinstance(value, list | tuple):
        return [strict_json(v, f"{where}[{i}]", depth=depth - 1) for i, v in enumerate(value)]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {
            strict_json(key, where): strict_json(v, f"{where}[{key!r:.60}]", depth=depth - 1)
            for key, v in value.items()
        }
    raise CheckpointError(
        f"{where}: {type(value).__module__}.{type(value).__qualname__} is no JSON value; metadata "
        "holds text, numbers, booleans, None, lists and dicts with text keys"
    )


_FLOAT_NAMES = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def _float_out(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


# ---------------------------------------------------------------- the manifest


def encode_manifest(manifest: Manifest) -> tuple[bytes, str]:
    """The manifest's file and its digest.

    Raises:
        CheckpointError: larger than any reader would take.
    """
    floats = {"phi": manifest.phi, "kappa_eff": manifest.kappa_eff}
    body = canonical_json(
        {
            "format": {"name": FORMAT, "version": VERSION},
            "id": str(manifest.id),
            "store": str(manifest.store),
            "session": manifest.session,
            "attempt": manifest.attempt,
            "step": manifest.step,
            "kind": manifest.kind,
            **{name: None if v is None else _float_out(v) for name, v in floats.items()},
            "regime": manifest.regime,
            "created_at": manifest.created_at.astimezone(UTC).isoformat(),
            "parent": str(manifest.parent) if manifest.parent else None,
            "weights_finite": manifest.weights_finite,
            "not_finite": list(manifest.not_finite),
            "files": {n: {"bytes": f.bytes, "blake3": f.blake3} for n, f in manifest.files.items()},
            "tensors": {
                name: {"dtype": info.dtype, "shape": list(info.shape), "blake3": info.blake3}
                for name, info in manifest.tensors.items()
            },
            "skeleton": manifest.skeleton,
            "metadata": manifest.metadata,
        }
    )
    if len(body) > MANIFEST_BYTES_MAX - 256:
        raise CheckpointError(
            f"the state's structure takes {len(body)} bytes of manifest, the limit is "
            f"{MANIFEST_BYTES_MAX}. Store long lists of numbers as NumPy arrays."
        )
    digest = blake3(body).hexdigest()
    return _PREFIX + digest.encode() + _MIDDLE + body + _END, digest


def decode_manifest(path: Path, data: bytes) -> Manifest:
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
            path, "the manifest's fields", expected=f"format {VERSION}", found=repr(error)[:200]
        ) from None


def _check_format(path: Path, fields: Any) -> None:
    named = fields.get("format") if isinstance(fields, dict) else None
    if not isinstance(named, dict) or named.get("name") != FORMAT:
        raise CheckpointFormatError(
            path,
            f"expected the manifest of a {FORMAT}, found {named!r:.80}. It was left as it is; "
            "restore another one (`qigstore checkpoints list`).",
        )
    version = named.get("version")
    if version != VERSION:
        raise CheckpointFormatError(
            path,
            f"written in checkpoint format {version!r:.20}; this version of qigstore reads "
            f"{VERSION}. Upgrade qigstore to load it; it was left as it is.",
        )


def _manifest(fields: dict[str, Any], digest: str) -> Manifest:
    if fields["kind"] not in get_args(CheckpointKind):
        raise ValueError(f"kind {fields['kind']!r:.40}")
    created_at = datetime.fromisoformat(fields["created_at"])
    if created_at.tzinfo is None:
        raise ValueError("created_at without a time zone")
    files = {n: FileInfo(_count(f["bytes"]), _hex(f["blake3"])) for n, f in fields["files"].items()}
    if set(files) != {PAYLOAD}:
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
        tensors={
            name: TensorInfo(_text(t["dtype"]), _shape(t["shape"]), _hex(t["blake3"]))
            for name, t in fields["tensors"].items()
        },
        skeleton=fields["skeleton"],
        metadata=dict(fields["metadata"]),
        digest=digest,
    )


def _float_in(value: Any) -> float | None:
    if value is None:
        return None
    return _FLOAT_NAMES[value] if isinstance(value, str) else float(value)


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
