"""The Open Inference Protocol, version 2, so that clients of Triton, KServe and others can ask for verdicts.

A model is a recipe. Its input `image` is BYTES, the files of one part's views; a part that is asked for this way stands
in the ledger like any other. Answers are JSON; pictures may come as binary data behind the JSON (the protocol's binary
extension) or in it, in base64.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import re
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel

from flawmap.errors import DataError, Unavailable, UsageError
from flawmap.station.api import BINARY, MOST_VIEWS, STATUS, TOKEN, judged, needs
from flawmap.station.line import Line, Picture
from flawmap.station.recipes import Recipe
from flawmap.station.shown import Gone

INPUT = "image"
OUTPUTS = {"verdict": "BYTES", "score": "FP64", "p_value": "FP64", "threshold": "FP64", "seq": "INT64"}
LENGTH = "inference-header-content-length"
MOST_MARKS = 10_000  # brackets and commas of the JSON: what makes it grow when it is read


class OipFault(BaseModel):
    error: str


FAULTS: dict[int | str, dict[str, Any]] = {code: {"model": OipFault} for code in STATUS}
BODY = {
    "type": "object",
    "required": ["inputs"],
    "properties": {
        "id": {"type": "string"},
        "parameters": {"type": "object", "properties": {"part": {"type": "string"}}},
        "inputs": {"type": "array", "minItems": 1, "maxItems": 1, "items": {"type": "object"}},
        "outputs": {"type": "array", "items": {"type": "object"}},
    },
}
ASKED = {"required": True, "content": {"application/json": {"schema": BODY}, "application/octet-stream": {}}}
ASKED["content"]["application/octet-stream"] = {"schema": BINARY}


def router(line: Line) -> APIRouter:
    api = APIRouter(prefix="/v2", responses=FAULTS, dependencies=[TOKEN])

    @api.get("")
    def server() -> dict[str, Any]:
        from flawmap import __version__

        return {"name": "flawmap", "version": __version__, "extensions": ["binary_tensor_data"]}

    @api.get("/health/live")
    async def live() -> dict[str, bool]:
        return {"live": True}

    @api.get("/health/ready")
    async def ready() -> dict[str, bool]:
        if not line.ready:
            raise Unavailable(line.blocked or line.fault or "closing", "NOT_READY")
        return {"ready": True}

    for at in ("/models/{name}", "/models/{name}/versions/{version}"):
        _model(api, line, at)
    return api


def _model(api: APIRouter, line: Line, at: str) -> None:
    def recipe(name: str, version: str | None) -> Recipe:
        found = line.recipes.get(name) if name in line.recipes.names else None
        if found is None or version not in (None, str(found.version)):
            raise Gone(f"there is no model {name!r}{f' of version {version}' if version else ''}")
        return found

    @api.get(at)
    def about(name: str, version: str | None = None) -> dict[str, Any]:
        found = recipe(name, version)
        outputs = [{"name": key, "datatype": kind, "shape": [1]} for key, kind in OUTPUTS.items()]
        inputs = [{"name": INPUT, "datatype": "BYTES", "shape": [-1]}]
        return {"name": name, "versions": [str(found.version)], "platform": "flawmap", "inputs": inputs} | {
            "outputs": outputs
        }

    @api.get(f"{at}/ready")
    def ready(name: str, version: str | None = None) -> dict[str, bool]:
        _ = recipe(name, version)
        if not line.ready:
            raise Unavailable(line.blocked or line.fault or "closing", "NOT_READY")
        return {"ready": True}

    @api.post(f"{at}/infer", dependencies=[needs("operate")], openapi_extra={"requestBody": ASKED})
    async def infer(request: Request, name: str, version: str | None = None) -> dict[str, Any]:
        """Judge one part. Its name is the parameter `part`, else `id`, else of the pictures' SHA-256."""
        found = recipe(name, version)
        body = await request.body()
        head, views, wanted = await asyncio.to_thread(read, body, request.headers.get(LENGTH))
        part = head.get("parameters", {}).get("part") or head.get("id") or ""
        row = await judged(line, part, views, recipe=name, source="oip", who=request.state.who)
        if row["kind"] == "error":
            raise DataError(row["reason"]) if row["code"] == "DATA" else Unavailable(row["reason"], row["code"])
        outputs = [
            {"name": key, "datatype": kind, "shape": [1], "data": [row[key]]}
            for key, kind in OUTPUTS.items()
            if not wanted or key in wanted
        ]
        answer = {"model_name": name, "model_version": str(found.version), "outputs": outputs}
        return answer | ({"id": head["id"]} if "id" in head else {})


def read(body: bytes, length: str | None) -> tuple[dict[str, Any], list[Picture], set[str]]:
    """The request's JSON, the pictures, and the outputs asked for. UsageError: it is not of the protocol."""
    if length is not None and not (re.fullmatch("[0-9]{1,15}", length) and int(length) <= len(body)):
        raise UsageError(f"the header {LENGTH} is not a number of bytes of the body")
    end = len(body) if length is None else int(length)
    if sum(body.count(mark, 0, end) for mark in b"[{,") > MOST_MARKS:
        raise UsageError(f"the JSON has more than {MOST_MARKS} brackets and commas")
    try:
        head = json.loads(body[:end])
        given = [entry for entry in head["inputs"] if entry["name"] == INPUT]
        if len(head["inputs"]) != 1 or not given or given[0]["datatype"] != "BYTES":
            raise UsageError(f"give one input, {INPUT!r}, of datatype BYTES: the files of the part's views")
        size = given[0].get("parameters", {}).get("binary_data_size")
        wanted = {str(entry["name"]) for entry in head.get("outputs", [])}
        pictures = _binary(body[end:], size) if size is not None else [_base64(text) for text in given[0]["data"]]
        for text in (head.get("id", ""), head.get("parameters", {}).get("part", "")):
            if not isinstance(text, str) or "\0" in text or text.encode() is None:  # half a pair cannot be encoded
                raise UsageError("`id` and the parameter `part` are texts without null characters")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"not a request of the protocol: {type(error).__name__}: {error}") from error
    if unknown := sorted(wanted - set(OUTPUTS)):
        raise UsageError(f"there is no output {unknown[0]!r}; there are: {', '.join(OUTPUTS)}")
    if not 1 <= len(pictures) <= MOST_VIEWS:
        raise UsageError(f"give 1 to {MOST_VIEWS} pictures, not {len(pictures)}")
    return head, [Picture(f"view {number}", content) for number, content in enumerate(pictures)], wanted


def _binary(data: bytes, size: Any) -> list[bytes]:
    """Each with its length before it, four bytes, the lowest first."""
    if size != len(data):
        raise UsageError(f"{len(data)} bytes of binary data came, binary_data_size says {size}")
    found, at = [], 0
    while at < len(data) and len(found) <= MOST_VIEWS:
        end = at + 4 + int.from_bytes(data[at : at + 4], "little")
        if at + 4 > len(data) or end > len(data):
            raise UsageError("the binary data end within a picture")
        found.append(data[at + 4 : end])
        at = end
    return found


def _base64(text: Any) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError, TypeError) as error:
        raise UsageError("pictures within JSON are base64; or send them as binary data") from error
