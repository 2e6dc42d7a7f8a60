"""A PNG has the pixels that it was made from, read by another library."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from flawmap.errors import DataError
from flawmap.images.decode import read_pixels
from flawmap.images.png import as_png, write_png


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("shape", [(1, 1), (17, 5), (1, 9, 3), (23, 31, 3)])
def test_opencv_reads_the_same_pixels(dtype: type, shape: tuple[int, ...]) -> None:
    cv2 = pytest.importorskip("cv2")
    pixels = np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, shape).astype(dtype)
    content = write_png(pixels)
    found = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(found if found.ndim == 2 else found[..., ::-1], pixels)
    assert found.dtype == dtype
    np.testing.assert_array_equal(np.asarray(read_pixels(content, 1.0)), pixels)


def test_a_png_stays_byte_for_byte_and_others_become_one() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (8, 9, 3)).astype(np.uint8)
    for form in ("PNG", "BMP"):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, form)
        content, found = as_png(file.getvalue(), 1.0)
        assert (content == file.getvalue()) == (form == "PNG")
        assert content.startswith(b"\x89PNG")
        np.testing.assert_array_equal(found, pixels)
    with pytest.raises(DataError, match="not a PNG"):
        as_png(b"no picture", 1.0)
