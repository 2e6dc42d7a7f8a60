from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import zipfile
from contextlib import redirect_stdout
from pathlib import Path

import pytest

import flawmap
from flawmap.cli import main
from flawmap.errors import BundleError, UsageError
from flawmap.run.bundle import manifest, read
from flawmap.run.calibrate import calibrate
from flawmap.run.doctor import doctor
from flawmap.run.model import Model
from flawmap.run.sign import new_key, sign


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    new_key(folder)
    return folder


@pytest.fixture
def signed(crossed: Model, keys: Path, tmp_path: Path) -> Path:
    path = crossed.save(tmp_path / "part.flaw")
    sign(path, keys / "private.pem")
    return path


def _unpacked(path: Path, folder: Path) -> Path:
    with zipfile.ZipFile(path) as archive:
        archive.extractall(folder)
    return folder


def test_a_signed_bundle_is_taken_with_the_public_key(signed: Path, crossed: Model, keys: Path):
    model = flawmap.load(signed, key=keys / "public.pem")
    assert model.bundle.files == crossed.bundle.files
    assert model.bundle.sha256 == crossed.bundle.sha256
    assert flawmap.load(signed).bundle.signature is not None  # and without a key nothing is asked


def test_a_signature_outlives_unpacking_packing_and_saving(signed: Path, keys: Path, tmp_path: Path):
    public = keys / "public.pem"
    folder = _unpacked(signed, tmp_path / "folder")
    read(folder, public)
    text = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(text, indent=4, sort_keys=True))  # laid out otherwise
    read(folder, public)
    again = tmp_path / "again.flaw"
    with zipfile.ZipFile(again, "w") as archive:
        for file in sorted(folder.rglob("*"), reverse=True):
            if file.is_file():
                archive.write(file, file.relative_to(folder).as_posix())
    saved = flawmap.load(again, key=public).save(tmp_path / "saved.flaw")
    assert saved.read_bytes() == signed.read_bytes()


def test_a_folder_is_signed_where_it_lies(crossed: Model, keys: Path, tmp_path: Path):
    folder = _unpacked(crossed.save(tmp_path / "part.flaw"), tmp_path / "folder")
    with pytest.raises(BundleError, match="not signed"):
        read(folder, keys / "public.pem")
    sign(folder, keys / "private.pem")
    read(folder, keys / "public.pem")


def test_what_nobody_signed_is_refused_where_a_key_is_asked_for(
    crossed: Model, signed: Path, keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = crossed.save(tmp_path / "unsigned.flaw")
    with pytest.raises(BundleError, match=r"unsigned\.flaw: not signed, and .*public\.pem is asked for"):
        flawmap.load(path, key=keys / "public.pem")
    monkeypatch.setenv("FLAWMAP_KEY", str(keys / "public.pem"))
    with pytest.raises(BundleError, match="not signed"):
        flawmap.load(path)
    flawmap.load(signed)


def test_a_changed_bundle_is_refused_though_its_manifest_was_made_anew(signed: Path, keys: Path, tmp_path: Path):
    folder = _unpacked(signed, tmp_path / "folder")
    threshold = json.loads((folder / "calibration.json").read_text())
    (folder / "card.md").write_text((folder / "card.md").read_text() + "Approved.\n")
    assert threshold["threshold"] > 0
    names = [
        file for file in folder.rglob("*") if file.is_file() and file.name not in ("manifest.json", "signature.json")
    ]
    content = {file.relative_to(folder).as_posix(): file.read_bytes() for file in names}
    (folder / "manifest.json").write_bytes(manifest(content))
    read(folder)  # nothing else would notice
    with pytest.raises(BundleError, match="changed after it was signed"):
        read(folder, keys / "public.pem")


def test_another_key_is_refused_and_both_are_named(signed: Path, tmp_path: Path):
    other = new_key(tmp_path / "other")
    with pytest.raises(BundleError, match=rf"signed by [0-9a-f]{{64}}; .* is {other['fingerprint']}"):
        read(signed, tmp_path / "other" / "public.pem")


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b'{"kind": "Ed25519", "key": "x", "signature": "!"}'])
def test_a_broken_signature_is_a_bundle_error(content: bytes, signed: Path, keys: Path, tmp_path: Path):
    folder = _unpacked(signed, tmp_path / "folder")
    (folder / "signature.json").write_bytes(content)
    with pytest.raises(BundleError):
        read(folder, keys / "public.pem")


def test_a_signature_cannot_be_moved_to_another_bundle(signed: Path, banded: Model, keys: Path, tmp_path: Path):
    folder = _unpacked(banded.save(tmp_path / "banded.flaw"), tmp_path / "folder")
    shutil.copy(_unpacked(signed, tmp_path / "signed") / "signature.json", folder / "signature.json")
    with pytest.raises(BundleError, match="changed after it was signed"):
        read(folder, keys / "public.pem")


def test_a_model_that_is_calibrated_anew_is_signed_by_nobody(signed: Path, keys: Path, tmp_path: Path):
    made = calibrate(flawmap.load(signed), policy="manual", threshold=1.0)
    assert made.bundle.signature is None
    with pytest.raises(BundleError, match="not signed"):
        read(made.save(tmp_path / "again.flaw"), keys / "public.pem")


def test_what_is_no_key_is_a_usage_error(signed: Path, keys: Path, tmp_path: Path):
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import x25519

    form = serialization.PublicFormat.SubjectPublicKeyInfo
    other = x25519.X25519PrivateKey.generate().public_key().public_bytes(serialization.Encoding.PEM, form)
    (tmp_path / "other.pem").write_bytes(other)
    for key in (signed, keys / "private.pem", tmp_path / "none.pem", tmp_path / "other.pem"):
        with pytest.raises(UsageError):
            read(signed, key)
    for key in (signed, keys / "public.pem", tmp_path / "none.pem"):
        with pytest.raises(UsageError):
            sign(signed, key)
    with pytest.raises(UsageError, match=r"private\.pem is there already"):
        new_key(keys)
    assert (keys / "private.pem").stat().st_mode & 0o777 == 0o600


def test_the_command_line_signs_and_checks(crossed: Model, world: Path, tmp_path: Path):
    path = crossed.save(tmp_path / "part.flaw")
    with redirect_stdout(io.StringIO()) as out:
        assert main(["sign", "--new-key", str(tmp_path / "keys")]) == 0
        public, picture = tmp_path / "keys" / "public.pem", world / "test" / "good" / "000.png"
        assert main(["inspect", str(path), str(picture), "--key", str(public)]) == 1
        assert main(["doctor", str(path), "--key", str(public)]) == 1
        assert main(["sign", str(path)]) == 2
        assert main(["sign", str(path), "--key", str(tmp_path / "keys" / "private.pem")]) == 0
        assert main(["inspect", str(path), str(picture), "--key", str(public)]) == 0
        assert main(["evaluate", str(path), str(world), "--out", str(tmp_path / "e"), "--key", str(public)]) == 0
    whose = next(line.split()[-1] for line in out.getvalue().splitlines() if line.startswith("fingerprint"))
    assert doctor(path, public)[0]["signed by"] == whose
    assert doctor(path)[0]["signed by"] == f"{whose}, as it says; --key proves it"
    assert doctor(crossed.save(tmp_path / "unsigned.flaw"))[0]["signed by"] == "nobody"


def test_openssl_finds_the_signature_good(signed: Path, keys: Path, tmp_path: Path):
    """By a program that knows nothing of us."""
    import base64

    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed")
    folder = _unpacked(signed, tmp_path / "folder")
    told = json.loads((folder / "signature.json").read_text())
    (tmp_path / "raw").write_bytes(base64.b64decode(told["signature"]))
    words = [openssl, "pkeyutl", "-verify", "-pubin", "-inkey", str(keys / "public.pem"), "-rawin"]
    words += ["-in", str(folder / "manifest.json"), "-sigfile", str(tmp_path / "raw")]
    done = subprocess.run(words, capture_output=True, text=True)
    assert (done.returncode, "Verified Successfully" in done.stdout) == (0, True), done


def test_without_the_package_a_bundle_that_need_not_be_signed_is_read(signed: Path):
    code = "import sys; sys.modules['cryptography'] = None\n"
    code += f"from pathlib import Path; from flawmap.run.bundle import read; read(Path({str(signed)!r}))\n"
    code += f"try: read(Path({str(signed)!r}), 'x.pem')\nexcept ImportError as e: print(e)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == 'a signed bundle needs cryptography: pip install "flawmap[sign]"', done.stderr
