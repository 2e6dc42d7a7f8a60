"""What an ONNX graph says of itself: opset, operators, external data. Read from its bytes, without the package onnx.

A file is walked as protobuf writes it: fields of (number, kind), of which only messages are entered; the numbers of the
weights are stepped over. Field numbers are those of onnx.proto.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

from flawmap.errors import BundleError

MAX_GRAPH_BYTES = 2**31 - 1  # what one ONNX file without external data can hold
DEEPEST = 32  # graphs inside nodes inside graphs; ours have none
EXTERNAL = 1  # TensorProto.DataLocation
_PLAIN = ("", "ai.onnx")  # names of the standard operators' domain

# message -> field number -> the message inside
_INSIDE = {
    "model": {7: "graph", 8: "opset", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
_OPERATOR, _DOMAIN = 4, 7  # of a node
_SET, _VERSION = 1, 2  # of an opset
_OUTSIDE, _LOCATION = 13, 14  # of a tensor


def described(graph: bytes) -> dict[str, Any]:
    """Opset, operators with their counts, size and SHA-256. BundleError as of `operators`."""
    opset, found = operators(graph)
    return {"opset": opset, "operators": found, "bytes": len(graph), "sha256": hashlib.sha256(graph).hexdigest()}


def precision(graph: bytes) -> str:
    """int8 where anything is quantised, else fp32. BundleError as of `operators`."""
    _, found = operators(graph)
    return "int8" if any("Quantize" in name or name.startswith("QLinear") for name in found) else "fp32"


def operators(graph: bytes) -> tuple[int, dict[str, int]]:
    """Opset, and how often each operator comes. BundleError: data in other files, too large, or no ONNX file."""
    if len(graph) > MAX_GRAPH_BYTES:
        raise BundleError(f"model.onnx has {len(graph)} bytes, more than one file may hold")
    seen: Counter[str] = Counter()
    opset: dict[str, int] = {}
    try:
        _walk(memoryview(graph), "model", seen, opset, 0)
    except (IndexError, ValueError) as error:
        if isinstance(error, BundleError):
            raise
        raise BundleError(f"model.onnx cannot be loaded: it is no ONNX file ({error}); get the bundle again") from error
    if not seen:
        raise BundleError("model.onnx cannot be loaded: it holds no graph; get the bundle again")
    return next((opset[name] for name in _PLAIN if name in opset), 0), dict(sorted(seen.items()))


def in_words(found: dict[str, Any]) -> str:
    listed = ", ".join(f"{name} {count}" for name, count in found["operators"].items())
    return f"opset {found['opset']}, {found['bytes'] / 2**20:.1f} MiB, SHA-256 {found['sha256']}; operators: {listed}"


def _walk(content: memoryview, message: str, seen: Counter[str], opset: dict[str, int], depth: int) -> None:
    if depth > DEEPEST:
        raise ValueError("graphs inside one another")
    own: dict[int, Any] = {}
    for field, value in _fields(content):
        inside = _INSIDE.get(message, {}).get(field)
        if inside is not None:
            if not isinstance(value, memoryview):
                raise ValueError(f"field {field} of a {message} is no message")
            _walk(value, inside, seen, opset, depth + 1)
        else:
            own[field] = value
    if message == "node":
        operator, domain = _text(own.get(_OPERATOR)), _text(own.get(_DOMAIN))
        seen[operator if domain in _PLAIN else f"{domain}.{operator}"] += 1
    elif message == "opset":
        opset[_text(own.get(_SET))] = int(own.get(_VERSION, 0))
    elif message == "tensor" and (own.get(_LOCATION) == EXTERNAL or _OUTSIDE in own):
        raise BundleError(
            "model.onnx names data in another file, which no bundle holds; save the graph with its data inside"
        )


def _fields(content: memoryview) -> Iterator[tuple[int, Any]]:
    """Number and value of each field: an integer, or the bytes of a text or message; fixed numbers as bytes."""
    at, end = 0, len(content)
    while at < end:
        key, at = _varint(content, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(content, at)
        else:
            length, at = _varint(content, at) if kind == 2 else ({1: 8, 5: 4}.get(kind, -1), at)
            if length < 0 or at + length > end:
                raise ValueError(f"broken at byte {at} of {end}")
            value, at = content[at : at + length], at + length
        yield key >> 3, value


def _varint(content: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = content[at]
        value, at = value | (byte & 127) << shift, at + 1
        if byte < 128:
            return value, at
    raise ValueError("a number without an end")


def _text(value: Any) -> str:
    return bytes(value).decode() if isinstance(value, memoryview) else ""
