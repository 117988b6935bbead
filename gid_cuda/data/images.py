"""Decodes image files to RGB, whatever they are stored as."""

from __future__ import annotations

import os
import re
import stat
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gid_cuda.data.records import one_line
from gid_cuda.errors import UserError

MAX_PIXELS = 89_478_485  # where PIL, too, begins to warn; as float32 RGB it is 1 GB
MAX_ASPECT = 200  # one side over the other; beyond it an image scaled to 800 x 1333 would soon have no row left
# Only these decoders see a file, whatever its name says: PIL has others that run programs (EPS: Ghostscript).
FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF", "PPM", "JPEG2000")
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""Of the files that are looked for where a folder is searched."""

_SIXTEEN_BITS = ("I", "I;16", "I;16L", "I;16B", "I;16N")  # PIL opens 16-bit grey as one of these


class UnreadableImage(UserError):
    """This file cannot be decoded; the message names it and says why."""


def _open(path: Path) -> Image.Image:
    """Reads the header. More than MAX_PIXELS are refused before anything is decoded: a file of a few bytes, such as a
    decompression bomb, can claim any size."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ValueError("no regular file")  # to open a pipe would wait for a writer, perhaps for ever
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(path, formats=FORMATS)
    except FileNotFoundError:
        raise UnreadableImage(f"{_shown(path)}: not found") from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        found = re.search(r"\d+", str(error))
        raise _too_large(path, found[0] if found else "too many") from None
    except Exception as error:  # decoders raise whatever a broken file leads them to
        raise UnreadableImage(f"{_shown(path)}: {_reason(error)}") from None
    if image.width * image.height > MAX_PIXELS:  # PIL's own limit is any library's to change
        image.close()
        raise _too_large(path, f"{image.width}x{image.height}")
    if max(image.size) > MAX_ASPECT * min(image.size):
        image.close()
        size = f"{image.width}x{image.height}"
        raise UnreadableImage(f"{_shown(path)}: is {size} pixels, one side over {MAX_ASPECT} times the other: cut it")
    return image


def _too_large(path: Path, size: str) -> UnreadableImage:
    return UnreadableImage(f"{_shown(path)}: has {size} pixels, and at most {MAX_PIXELS} are read: cut it into tiles")


def _shown(path: Path) -> str:
    """A file's name may hold line breaks and a terminal's control characters."""
    return one_line(str(path), limit=1000)


def _reason(error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return f"not an image of a known kind ({', '.join(FORMATS)})"
    return one_line(str(error)) or type(error).__name__


def image_size(path: Path) -> tuple[int, int]:
    """(width, height) from the header, without decoding. UnreadableImage where there is none."""
    with _open(path) as image:
        return image.size


def read_image(path: Path) -> Tensor:
    """The image as (3, H, W) uint8 RGB, in its stored pixels. UnreadableImage where it cannot be decoded.

    Grey and palette images become RGB; alpha is dropped, as `Image.convert("RGB")` does; 16 bits are scaled to 8
    (65535 becomes 255); of an animation the first picture is taken. An EXIF orientation is not applied: annotations
    are in the stored pixels.
    """
    with _open(path) as image:
        try:
            pixels = _rgb(image)
        except Exception as error:
            raise UnreadableImage(f"{_shown(path)}: {_reason(error)}") from None
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def _rgb(image: Image.Image) -> np.ndarray:
    if image.mode in _SIXTEEN_BITS:
        wide = np.clip(np.asarray(image), 0, 65535).astype(np.int32)
        grey = ((wide + 128) // 257).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.mode == "F":
        raise ValueError("floating-point pixels have no agreed range; save it with 8 or 16 bits")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # PIL warns when such a palette goes to RGB at once
    return np.array(image.convert("RGB"))
