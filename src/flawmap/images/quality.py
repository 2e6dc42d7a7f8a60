"""How a picture was taken, in three numbers: brightness, sharpness, saturation. A station charts them (verdict/drift).

They say nothing of defects. A lamp that ages moves the brightness, a lens that came loose the sharpness, both before
the scores do. Pictures are as decoded: (H, W) or (H, W, 3), uint8 or uint16.
"""

from __future__ import annotations

import numpy as np

from flawmap.errors import DataError

LUMA = (0.299, 0.587, 0.114)  # grey of red, green, blue: ITU-R BT.601, as Pillow's mode L


def grey(image: np.ndarray, white: int | None = None) -> np.ndarray:
    """(H, W) float32 in [0, 1]; `white` is the level that counts as 1: 4095 for 12 bits. Default: the type's largest.

    DataError: not a picture as decoded, an empty one, or one that is brighter than `white`.
    """
    image = np.asarray(image)
    if image.dtype not in (np.uint8, np.uint16) or image.ndim not in (2, 3) or image.shape[2:] not in ((), (3,)):
        raise DataError(f"an array {image.shape} of {image.dtype} is no picture: give (H, W[, 3]) of uint8 or uint16")
    if image.size == 0:
        raise DataError(f"an array {image.shape} is an empty picture")
    level = _white(image, white)
    if image.ndim == 2:
        return image.astype(np.float32) / np.float32(level)
    return image.astype(np.float32) @ (np.array(LUMA, np.float32) / np.float32(level))


def brightness(image: np.ndarray, white: int | None = None) -> float:
    """Mean grey, in [0, 1]."""
    return float(grey(image, white).mean(dtype=np.float64))


def sharpness(image: np.ndarray, white: int | None = None) -> float:
    """Variance of the Laplacian of the grey (Pech-Pacheco et al. 2000): small where all is blurred, 0 where it is flat.

    The Laplacian has four neighbours; beyond its edge the picture repeats its last row or column. It grows with
    contrast and noise, and depends on size and scene: compare pictures of one station only.
    """
    g = np.pad(grey(image, white), 1, mode="edge")
    laplacian = g[:-2, 1:-1] + g[2:, 1:-1] + g[1:-1, :-2] + g[1:-1, 2:] - 4 * g[1:-1, 1:-1]
    return float(laplacian.var(dtype=np.float64))


def saturation(image: np.ndarray, white: int | None = None) -> float:
    """Share of the pixels that are at the white level in any channel: what is there is not in the picture."""
    grey(image, white)  # refuses what is no picture
    full = np.asarray(image) >= _white(image, white)
    return float((full if full.ndim == 2 else full.any(axis=2)).mean())


def _white(image: np.ndarray, white: int | None) -> int:
    if white is None:
        return int(np.iinfo(image.dtype).max)
    if white < 1 or int(image.max()) > white:
        raise DataError(f"the brightest value is {int(image.max())}, above the white level {white}; give the camera's")
    return white
