"""The Open Inference Protocol: its requests read exactly, and Triton's own client served."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
import pytest

from flawmap.errors import UsageError
from flawmap.station.line import Picture
from flawmap.station.oip import MOST_MARKS, OUTPUTS, read
from flawmap.station.recipes import Recipes

Pictures = dict[str, Picture]


def _framed(*contents: bytes) -> bytes:
    return b"".join(len(content).to_bytes(4, "little") + content for content in contents)


def _asked(*contents: bytes, binary: bool = True, **more: Any) -> tuple[bytes, str]:
    """A request's body, and the length of its JSON."""
    data = _framed(*contents) if binary else b""
    entry: dict[str, Any] = {"name": "image", "datatype": "BYTES", "shape": [len(contents)]}
    if binary:
        entry["parameters"] = {"binary_data_size": len(data)}
    else:
        entry["data"] = [base64.b64encode(content).decode() for content in contents]
    head = json.dumps({"inputs": [entry], **more}).encode()
    return head + data, str(len(head))


# ---- reading


@pytest.mark.parametrize("binary", [True, False])
def test_pictures_are_read_to_the_last_byte(binary: bool) -> None:
    contents = [b"one", b"", bytes(range(256))]
    head, views, wanted = read(*_asked(*contents, binary=binary, id="7", outputs=[{"name": "score"}]))
    assert [view.content for view in views] == contents
    assert (head["id"], wanted) == ("7", {"score"})


@pytest.mark.parametrize("cut", [1, 3, 5, 6])
def test_binary_data_that_end_within_a_picture_are_refused(cut: int) -> None:
    body, length = _asked(b"abc")
    with pytest.raises(UsageError, match="bytes of binary data came"):
        read(body[:-cut], length)
    short = _framed(b"abc")[: 7 - cut]
    head = {"inputs": [{"name": "image", "datatype": "BYTES", "parameters": {"binary_data_size": len(short)}}]}
    text = json.dumps(head).encode()
    with pytest.raises(UsageError, match="end within a picture"):
        read(text + short, str(len(text)))


@pytest.mark.parametrize("length", ["", "-1", "x", "1e3", "99999999", "9" * 5000, "²", "+5"])
def test_a_length_of_the_json_that_is_none_is_refused(length: str) -> None:
    with pytest.raises(UsageError, match="is not a number of bytes"):
        read(_asked(b"x")[0], length)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"1",
        b'"x"',
        b"{",
        b"{}",
        b'{"inputs": 5}',
        b'{"inputs": []}',
        b'{"inputs": [1]}',
        b'{"inputs": [{"name": "image"}]}',
        b'{"inputs": [{"name": "picture", "datatype": "BYTES", "data": []}]}',
        b'{"inputs": [{"name": "image", "datatype": "FP32", "data": [1]}]}',
        b'{"inputs": [{"name": "image", "datatype": "BYTES", "data": [1]}]}',
        b'{"inputs": [{"name": "image", "datatype": "BYTES", "data": [[]]}]}',
        b'{"inputs": [{"name": "image", "datatype": "BYTES", "data": ["%%"]}]}',
        b'{"inputs": [{"name": "image", "datatype": "BYTES", "data": ["\xc3\xa9"]}]}',
        b'{"inputs": [{"name": "image", "datatype": "BYTES", "data": []}]}',
        b'{"inputs": [{"name": "image", "datatype": "BYTES", "parameters": null}]}',
        b'{"inputs": [{"name": "image", "datatype": "BYTES", "data": ["YQ=="]}], "parameters": []}',
        b'{"inputs": [{"name": "image", "datatype": "BYTES", "data": ["YQ=="]}], "parameters": {"part": {}}}',
        b'{"inputs": [{"name": "image", "datatype": "BYTES", "data": ["YQ=="]}], "parameters": {"part": "\\u0000"}}',
        b'{"inputs": [{"name": "image", "datatype": "BYTES", "data": ["YQ=="]}], "parameters": {"part": "\\ud800"}}',
        b'{"inputs": [{"name": "image", "datatype": "BYTES", "data": ["YQ=="]}], "id": 7}',
        b'{"inputs": [{"name": "image", "datatype": "BYTES", "data": ["YQ=="]}], "id": "\\ud800"}',
        b'{"inputs": [{"name": "image", "datatype": "BYTES", "data": ["YQ=="]}], "outputs": [{"name": "mask"}]}',
        b'{"inputs": [{"name": "image", "datatype": "BYTES", "data": ["YQ=="]}], "outputs": 1}',
        b'{"inputs": [{"name": "image", "datatype": "BYTES", "data": ["YQ=="]}], "n": ' + b"9" * 5000 + b"}",
        b"[" * 9_000,
        b'{"a":' * 9_000,
        b"[0" + b",0" * MOST_MARKS + b"]",
        b"\xff\xfe\x00",
    ],
)
def test_what_is_not_of_the_protocol_is_refused_and_nothing_else_raised(body: bytes) -> None:
    with pytest.raises(UsageError):
        read(body, None)


def test_a_hundred_pictures_and_no_more_are_read_of_millions() -> None:
    assert len(read(*_asked(*[b"x"] * 100))[1]) == 100
    for count in (101, 1_000_000):
        data = b"\0\0\0\0" * count
        entry = {"name": "image", "datatype": "BYTES", "parameters": {"binary_data_size": len(data)}}
        head = json.dumps({"inputs": [entry]}).encode()
        with pytest.raises(UsageError, match="1 to 100 pictures, not 101"):
            read(head + data, str(len(head)))


# ---- over sockets


def _triton(service: Any) -> Any:
    http = pytest.importorskip("tritonclient.http", reason='pip install "tritonclient[http]"')
    return http, http.InferenceServerClient(f"127.0.0.1:{service.port}")


def _auth(service: Any, role: str = "operate") -> dict[str, str]:
    return {"Authorization": f"Bearer {service.tokens[role]}"}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("binary", [True, False])
def test_tritons_client_asks_for_verdicts(service: Any, pictures: Pictures, recipes: Recipes, binary: bool) -> None:
    http, client = _triton(service)
    headers = _auth(service)
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("square", headers=headers)
    assert client.is_model_ready("square", "1", headers=headers)
    assert client.get_server_metadata(headers=headers)["name"] == "flawmap"
    about = client.get_model_metadata("square", headers=headers)
    assert about["inputs"] == [{"name": "image", "datatype": "BYTES", "shape": [-1]}]
    assert {entry["name"]: entry["datatype"] for entry in about["outputs"]} == OUTPUTS
    for name, verdict in (("good", b"OK"), ("bad", b"NOK")):
        content = pictures[name].content
        given = http.InferInput("image", [1], "BYTES")
        coded = content if binary else base64.b64encode(content)
        given.set_data_from_numpy(np.array([coded], dtype=object), binary_data=binary)
        found = client.infer("square", [given], headers=headers, request_id=f"T-{name}")
        assert found.as_numpy("verdict")[0].encode() == verdict
        assert found.as_numpy("score")[0] == recipes.active.model.inspect(content).score
        row = service.line.ledger.get(int(found.as_numpy("seq")[0]))
        assert (row["part"], row["source"], row["who"]) == (f"T-{name}", "oip", "the-operate")
        asked = [http.InferRequestedOutput("score", binary_data=False)]
        only = client.infer("square", [given], headers=headers, outputs=asked, model_version="1").get_response()
        assert [entry["name"] for entry in only["outputs"]] == ["score"]
        assert only["model_version"] == "1"
    client.close()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tritons_client_is_told_what_is_wrong(service: Any, pictures: Pictures) -> None:
    http, client = _triton(service)
    from tritonclient.utils import InferenceServerException

    given = http.InferInput("image", [1], "BYTES")
    given.set_data_from_numpy(np.array([pictures["broken"].content], dtype=object))
    wrong = http.InferInput("input", [1], "FP32")
    wrong.set_data_from_numpy(np.zeros(1, np.float32))
    for words, how in (
        ("^.*DATA: ", {"model_name": "square", "inputs": [given], "headers": _auth(service)}),
        ("USAGE: give one input, 'image'", {"model_name": "square", "inputs": [wrong], "headers": _auth(service)}),
        ("GONE: there is no model 'none'", {"model_name": "none", "inputs": [given], "headers": _auth(service)}),
        (
            "GONE: .* of version 9",
            {"model_name": "square", "model_version": "9", "inputs": [given], "headers": _auth(service)},
        ),
        ("TOKEN: give a token", {"model_name": "square", "inputs": [given]}),
        (
            "ROLE: this takes the role operate",
            {"model_name": "square", "inputs": [given], "headers": _auth(service, "view")},
        ),
        (
            "ENCODING: a body must not be compressed",
            {
                "model_name": "square",
                "inputs": [given],
                "headers": _auth(service),
                "request_compression_algorithm": "gzip",
            },
        ),
    ):
        with pytest.raises(InferenceServerException, match=words):
            client.infer(**how)
    client.close()


def test_a_part_is_named_by_its_parameter(service: Any, pictures: Pictures) -> None:
    body, length = _asked(pictures["good"].content, parameters={"part": "P-1"}, id="I-1")
    headers = {"inference-header-content-length": length}
    said = service.ask("POST", "/v2/models/square/infer", content=body, headers=headers).json()
    assert (said["id"], said["model_name"]) == ("I-1", "square")
    values = {entry["name"]: entry["data"][0] for entry in said["outputs"]}
    assert service.line.ledger.get(values["seq"])["part"] == "P-1"
    assert (values["verdict"], list(values)) == ("OK", list(OUTPUTS))


def test_a_blocked_station_is_not_ready(service: Any, pictures: Pictures) -> None:
    service.line.block("challenge first")
    try:
        body, length = _asked(pictures["good"].content)
        headers = {"inference-header-content-length": length}
        answer = service.ask("POST", "/v2/models/square/infer", content=body, headers=headers)
        assert (answer.status_code, answer.json()) == (503, {"error": "BLOCKED: blocked: challenge first"})
        assert service.ask("GET", "/v2/models/square/ready").status_code == 503
    finally:
        service.line.block("")
