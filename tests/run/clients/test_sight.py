"""The clients in C++ and C# see what flawmap sees, to the last bit, or say that they do not."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
from PIL import Image, PngImagePlugin

from flawmap.errors import DataError
from flawmap.images.intake import Intake

LEVELS = 2.5  # of 255: by so much two decoders of JPEG may differ
SQUASHED, CROPPED = Intake((48, 64)), Intake((40, 56), resize=61)
pytestmark = pytest.mark.skipif(
    int(PIL.__version__.split(".")[0]) < 13, reason="the clients resize as Pillow does since version 13"
)


# ---- pictures


def _noise(height: int, width: int, channels: int, seed: int = 0) -> np.ndarray:
    """Smooth waves with noise, from 0 to 255."""
    random = np.random.default_rng([seed, height, width])
    y, x, k = np.mgrid[:height, :width, :channels]
    wave = 128 + 90 * np.sin((x + 11 * k) / 7) * np.cos(y / 5) + random.normal(0, 25, (height, width, channels))
    return np.clip(wave, 0, 255).astype(np.uint8)


def _kinds() -> Iterator[tuple[str, Image.Image, dict[str, object]]]:
    """PNG of every kind that both clients read, with what to say when saving."""
    rgb = Image.fromarray(_noise(90, 71, 3))
    grey = Image.fromarray(_noise(51, 120, 1)[..., 0])
    yield "rgb", rgb, {}
    yield "grey", grey, {}
    yield "of the network's size", Image.fromarray(_noise(48, 64, 3)), {}
    yield "small", Image.fromarray(_noise(5, 9, 3)), {}
    yield "one bit", grey.convert("1"), {}
    for colours, bits in ((256, 8), (13, 4), (4, 2), (2, 1)):
        yield f"palette of {colours}", rgb.quantize(colours), {"bits": bits}
    yield "palette with alpha", rgb.quantize(9), {"transparency": bytes([0, 40, 200, 255, 130])}
    alpha = Image.fromarray(_noise(90, 71, 1, 3)[..., 0])
    yield "alpha", Image.merge("RGBA", (*rgb.split(), alpha)), {}
    yield "opaque alpha", rgb.convert("RGBA"), {}
    grey_alpha = grey.convert("LA")
    grey_alpha.putalpha(Image.fromarray(_noise(51, 120, 1, 4)[..., 0]))
    yield "grey with alpha", grey_alpha, {}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("kinds")
    for name, image, said in _kinds():
        image.save(folder / f"{name}.png", **said)  # type: ignore[arg-type]
    return sorted(folder.iterdir())


def _oriented(folder: Path, suffix: str) -> list[Path]:
    found = []
    for turned in range(1, 9):
        exif = Image.Exif()
        exif[0x0110], exif[0x0112] = "camera", turned
        Image.fromarray(_noise(33, 50, 3)).save(folder / f"turned{turned}{suffix}", exif=exif)
        found.append(folder / f"turned{turned}{suffix}")
    return found


def _expected(intake: Intake, pictures: list[Path]) -> bytes:
    return b"".join(intake(picture)[0].tobytes() for picture in pictures)


# ---- what the network sees


def _sizes() -> Iterator[tuple[int, int, int, int, int]]:
    random = np.random.default_rng(7)
    for _ in range(150):
        yield (
            *(int(n) for n in random.integers(1, 90, 2)),
            int(random.choice([1, 3])),
            *map(int, random.integers(1, 90, 2)),
        )  # type: ignore[misc]
    yield from [
        (1300, 900, 1, 256, 256),
        (643, 481, 3, 224, 320),
        (64, 64, 3, 64, 31),
        (64, 64, 3, 31, 64),
        (1, 1, 3, 5, 4),
    ]


def test_it_resizes_as_pillow_does_to_the_last_bit(client: Any) -> None:
    given, wanted, random = b"", b"", np.random.default_rng(8)
    for width, height, channels, to_width, to_height in _sizes():
        pixels = random.integers(0, 256, (height, width, channels))
        pixels = np.where(random.random(pixels.shape) < 0.4, random.choice([0, 255]), pixels).astype(np.uint8)
        given += struct.pack("<5i", width, height, channels, to_width, to_height) + pixels.tobytes()
        image = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
        wanted += image.resize((to_width, to_height), Image.Resampling.BILINEAR).tobytes()
    done = client.resize(given)
    assert done.returncode == 0, done.stderr
    assert done.stdout == wanted


@pytest.mark.parametrize("intake", [SQUASHED, CROPPED], ids=["squashed", "cropped"])
def test_it_sees_every_kind_of_png_as_flawmap_does(client: Any, pictures: list[Path], intake: Intake) -> None:
    done = client.planes(intake, *pictures)
    assert done.returncode == 0, done.stderr
    assert done.stdout == _expected(intake, pictures)


@pytest.mark.parametrize("intake", [SQUASHED, CROPPED], ids=["squashed", "cropped"])
def test_cpp_turns_png_as_its_exif_says(cpp: Any, tmp_path: Path, intake: Intake) -> None:
    pictures = _oriented(tmp_path, ".png")
    done = cpp.planes(intake, *pictures)
    assert done.returncode == 0, done.stderr
    assert done.stdout == _expected(intake, pictures)
    assert len({SQUASHED(picture)[0].tobytes() for picture in pictures}) == 8


def _interlaced(pixels: np.ndarray) -> bytes:
    """(H, W, 3) as PNG in the seven passes of Adam7, which Pillow reads and does not write."""
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    parts = [pixels[top::down, left::right] for top, left, down, right in passes]
    rows = b"".join(b"\0" + row.tobytes() for part in parts if part.size for row in part)
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 8, 2, 0, 0, 1)
    chunks = _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(rows)) + _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def test_interlaced_png_is_read_in_cpp_and_refused_in_csharp(client: Any, tmp_path: Path) -> None:
    pixels, path = _noise(21, 34, 3), tmp_path / "interlaced.png"
    path.write_bytes(_interlaced(pixels))
    np.testing.assert_array_equal(np.asarray(Image.open(path)), pixels)
    done = client.planes(SQUASHED, path)
    if client.name == "C++":
        assert (done.returncode, done.stdout) == (0, _expected(SQUASHED, [path]))
    else:
        assert (done.returncode, done.stdout) == (3, b"")
        assert b"interlaced" in done.stderr


def test_cpp_sees_jpeg_as_flawmap_does_but_for_what_two_decoders_differ_by(cpp: Any, tmp_path: Path) -> None:
    pictures = _oriented(tmp_path, ".jpg")
    for quality in (60, 95):
        for name, said in {"plain": {}, "whole": {"subsampling": 0}, "progressive": {"progressive": True}}.items():
            pictures.append(tmp_path / f"{name}{quality}.jpg")
            Image.fromarray(_noise(77, 123, 3)).save(pictures[-1], quality=quality, **said)
    pictures.append(tmp_path / "grey.jpg")
    Image.fromarray(_noise(77, 123, 1)[..., 0]).save(pictures[-1])
    done = cpp.planes(SQUASHED, *pictures)
    assert done.returncode == 0, done.stderr
    found, wanted = (np.frombuffer(b, np.float32) for b in (done.stdout, _expected(SQUASHED, pictures)))
    assert np.abs(found - wanted).max() * 255 < LEVELS


# ---- what they refuse


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _png(pixels: np.ndarray, **said: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", **said)  # type: ignore[arg-type]
    return buffer.getvalue()


def _broken() -> dict[str, tuple[bytes, str]]:
    """Pictures that no client may judge, and a word of the reason, the same in both."""
    whole = _png(_noise(40, 50, 3))
    xmp = PngImagePlugin.PngInfo()
    xmp.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="6"/>')
    frames = io.BytesIO()
    Image.fromarray(_noise(9, 9, 3)).save(
        frames, "PNG", save_all=True, append_images=[Image.fromarray(_noise(9, 9, 3, 1))]
    )
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 16
    return {
        "sixteen": (_png(np.full((9, 9), 4000, np.uint16)), "16 bits"),
        "half": (whole[: len(whole) // 2], "truncated"),
        "without its end": (whole[:-12], "truncated"),
        "flipped": (bytes(flipped), "damaged"),
        "transparent colour": (_png(_noise(9, 9, 3), transparency=(1, 2, 3)), "transparent colour"),
        "transparent": (_png(np.zeros((9, 9, 4), np.uint8)), "transparent everywhere"),
        "turned by XMP": (_png(_noise(9, 9, 3), pnginfo=xmp), "XMP"),
        "frames": (frames.getvalue(), "several frames"),
        "large": (_png(np.zeros((1100, 1000), np.uint8)), "megapixels"),
        "text": (b"PNG is what I am not", "not a PNG"),
        "bitmap": (b"BM" + bytes(60), "not a PNG"),
        "palette too short": (
            whole[:8]
            + _chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 8, 3, 0, 0, 0))
            + _chunk(b"PLTE", bytes(6))
            + _chunk(b"IDAT", zlib.compress(bytes([0, 1, 2])))
            + _chunk(b"IEND", b""),
            "damaged",
        ),
    }


def test_it_refuses_what_it_cannot_see_as_flawmap_does(client: Any, tmp_path: Path) -> None:
    small = Intake((48, 64), max_mpx=1)
    for name, (content, why) in _broken().items():
        path = tmp_path / f"{name}.png"
        path.write_bytes(content)
        done = client.planes(small, path)
        assert (done.returncode, done.stdout) == (3, b""), name
        assert why in done.stderr.decode(), (name, done.stderr)


def test_csharp_refuses_jpeg_and_exif(csharp: Any, tmp_path: Path) -> None:
    for path, why in ((_oriented(tmp_path, ".jpg")[0], "not a PNG"), (_oriented(tmp_path, ".png")[5], "EXIF")):
        done = csharp.planes(SQUASHED, path)
        assert (done.returncode, done.stdout) == (3, b"")
        assert why in done.stderr.decode()


def test_cpp_refuses_jpeg_that_is_cut_off_or_cmyk(cpp: Any, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(_noise(90, 120, 3)).save(buffer, "JPEG")
    cmyk = io.BytesIO()
    Image.fromarray(_noise(20, 20, 3)).convert("CMYK").save(cmyk, "JPEG")
    cuts = {f"cut at {share}": buffer.getvalue()[: int(share * len(buffer.getvalue()))] for share in (0.1, 0.5, 0.99)}
    for name, content in {**cuts, "cmyk": cmyk.getvalue()}.items():
        path = tmp_path / f"{name}.jpg"
        path.write_bytes(content)
        done = cpp.planes(SQUASHED, path)
        assert (done.returncode, done.stdout) == (3, b""), name
        with pytest.raises(DataError):
            SQUASHED(path)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_of_a_file_with_a_flipped_byte_cpp_sees_what_flawmap_sees_or_nothing(
    cpp: Any, tmp_path: Path, suffix: str
) -> None:
    random, path, refused = np.random.default_rng(3), tmp_path / f"flipped.{suffix}", 0
    Image.fromarray(_noise(24, 30, 3)).quantize(20).convert("RGB").save(path)
    whole = path.read_bytes()
    for at in random.integers(0, len(whole), 60):
        content = bytearray(whole)
        content[at] ^= 1 << int(random.integers(8))
        path.write_bytes(content)
        done = cpp.planes(SQUASHED, path)
        if done.returncode:
            assert (done.returncode, done.stdout) == (3, b"")
            refused += 1
        else:
            found, wanted = (np.frombuffer(b, np.float32) for b in (done.stdout, _expected(SQUASHED, [path])))
            assert np.abs(found - wanted).max() * 255 < LEVELS
    assert refused >= (50 if suffix == "png" else 5)
