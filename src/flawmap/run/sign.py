"""Who wrote a bundle: an Ed25519 signature (RFC 8032) over the bytes of its manifest, hence over every file inside.

The signature lies in the bundle as signature.json, which the manifest does not list; it outlives packing and unpacking.
A bundle that is calibrated anew, or changed in any way, is another bundle and carries none. Keys are PEM files.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flawmap.errors import BundleError, MissingExtra, UsageError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    from flawmap.run.bundle import Bundle

KEY = "FLAWMAP_KEY"  # names the public key that every bundle must be signed with
MAX_KEY_BYTES = 2**16
KIND = "Ed25519"


def new_key(folder: Path) -> dict[str, str]:
    """private.pem (for its owner alone) and public.pem. UsageError: there is a key already, which is not replaced."""
    serialization, ed25519 = _cryptography()
    key = ed25519.Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content, mode in (("private.pem", private, 0o600), ("public.pem", public, 0o644)):
        try:
            handle = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        except FileExistsError as error:
            raise UsageError(f"{folder / name} is there already and is not replaced; give another folder") from error
        with os.fdopen(handle, "wb") as file:
            file.write(content)
    return {
        "private key": str(folder / "private.pem"),
        "public key": str(folder / "public.pem"),
        "fingerprint": _fingerprint(key.public_key()),
    }


def sign(path: Path, key: Path, out: Path | None = None) -> dict[str, str]:
    """Signs the bundle at `path`, in place or as the file `out`. UsageError: `key` is no private Ed25519 key."""
    from flawmap.run.bundle import manifest, read

    serialization, ed25519 = _cryptography()
    try:
        private = serialization.load_pem_private_key(_pem(key), password=None)
    except (ValueError, TypeError) as error:  # TypeError: a key with a password
        raise UsageError(f"{key}: no private key in PEM without a password; make one with --new-key") from error
    if not isinstance(private, ed25519.Ed25519PrivateKey):
        raise UsageError(f"{key}: not an Ed25519 key; make one with --new-key")
    bundle = read(path, key="")  # which may be signed by nobody yet, or by another
    listed = manifest(bundle.files)
    told = {
        "kind": KIND,
        "key": _fingerprint(private.public_key()),
        "signature": base64.b64encode(private.sign(listed)).decode(),
    }
    bundle.signature = json.dumps(told, indent=1).encode()
    if out is None and path.is_dir():
        (path / "manifest.json").write_bytes(listed)  # as it was signed, should its JSON have been laid out anew
        (path / "signature.json").write_bytes(bundle.signature)
        written = path
    else:
        written = bundle.write(out or path)
    return {"bundle": str(written), "manifest": bundle.sha256, "signed by": told["key"]}


def checked(listed: bytes, signature: bytes | None, key: Path, origin: str) -> None:
    """BundleError: `listed`, the manifest's bytes, was not signed with the key whose public half lies at `key`."""
    public = _public(key)
    if signature is None:
        raise BundleError(f"{origin}: not signed, and {key} is asked for; get a signed bundle from who made it")
    told = _told(signature, origin)
    from cryptography.exceptions import InvalidSignature

    try:
        public.verify(base64.b64decode(told["signature"], validate=True), listed)
    except (InvalidSignature, ValueError) as error:
        whose = _fingerprint(public)
        why = f"signed by {told['key']}" if told["key"] != whose else "changed after it was signed"
        raise BundleError(f"{origin}: {why}; {key} is {whose}: do not use this bundle, get it again") from error


def signer(bundle: Bundle) -> str | None:
    """What the signature says of its key, which nobody has checked; None: not signed."""
    return None if bundle.signature is None else _told(bundle.signature, bundle.origin)["key"]


def _told(signature: bytes, origin: str) -> dict[str, str]:
    try:
        told: Any = json.loads(signature)
        if told["kind"] != KIND or not isinstance(told["key"], str) or not isinstance(told["signature"], str):
            raise ValueError
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise BundleError(f"{origin}: signature.json is no {KIND} signature; get the bundle again") from error
    return told


def _public(key: Path) -> Ed25519PublicKey:
    serialization, ed25519 = _cryptography()
    try:
        public = serialization.load_pem_public_key(_pem(key))
    except ValueError as error:
        raise UsageError(f"{key}: no public key in PEM; give the public.pem of who signs") from error
    if not isinstance(public, ed25519.Ed25519PublicKey):
        raise UsageError(f"{key}: not an {KIND} key; give the public.pem of who signs")
    return public


def _pem(key: Path) -> bytes:
    try:
        with key.open("rb") as file:
            return file.read(MAX_KEY_BYTES)
    except OSError as error:
        raise UsageError(f"{key}: the key cannot be read ({error.strerror})") from error


def _fingerprint(public: Ed25519PublicKey) -> str:
    """SHA-256 of the raw public key."""
    return hashlib.sha256(public.public_bytes_raw()).hexdigest()


def _cryptography() -> tuple[Any, Any]:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise MissingExtra("cryptography", "sign", "a signed bundle") from error
    return serialization, ed25519
