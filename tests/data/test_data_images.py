"""Every mode of image becomes RGB; every broken file is told by name and reason."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from data_helpers import picture
from PIL import Image

from gid_cuda.data.images import UnreadableImage, image_size, read_image

GREY = np.array([[0, 1, 128], [200, 254, 255]], np.uint8)


def saved(tmp_path: Path, image: Image.Image, name: str = "x.png", **options: object) -> Path:
    image.save(tmp_path / name, **options)
    return tmp_path / name


def three(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.repeat(values[None].astype(np.uint8), 3, 0))


def test_rgb_comes_as_it_is(tmp_path: Path) -> None:
    image = picture(5, 3, 0)
    read = read_image(saved(tmp_path, image))
    assert read.dtype == torch.uint8 and read.is_contiguous()
    assert torch.equal(read, torch.from_numpy(np.array(image)).permute(2, 0, 1))


def test_grey_and_two_colours(tmp_path: Path) -> None:
    assert torch.equal(read_image(saved(tmp_path, Image.fromarray(GREY))), three(GREY))
    assert torch.equal(read_image(saved(tmp_path, Image.fromarray(GREY > 150))), three((GREY > 150) * 255))


@pytest.mark.parametrize("transparent", [False, True])
def test_palette(tmp_path: Path, transparent: bool, recwarn: pytest.WarningsRecorder) -> None:
    image = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8), mode="P")
    image.putpalette([255, 0, 0, 0, 255, 0, 10, 20, 30])
    options = {"transparency": bytes([0, 128, 255])} if transparent else {}
    read = read_image(saved(tmp_path, image, **options))
    assert read[:, 0, 0].tolist() == [255, 0, 0]
    assert read[:, 0, 1].tolist() == read[:, 1, 1].tolist() == [0, 255, 0]
    assert read[:, 1, 0].tolist() == [10, 20, 30]
    assert not recwarn


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_dropped(tmp_path: Path, mode: str) -> None:
    image = picture(4, 4, 1).convert(mode)
    plain = image.convert("RGB")
    image.putalpha(Image.fromarray(np.arange(16, dtype=np.uint8).reshape(4, 4)))
    assert torch.equal(read_image(saved(tmp_path, image)), torch.from_numpy(np.array(plain)).permute(2, 0, 1))


@pytest.mark.parametrize("name", ["x.png", "x.tif"])
def test_sixteen_bits_are_scaled(tmp_path: Path, name: str) -> None:
    wide = np.array([[0, 128, 129], [32768, 65278, 65535]], np.uint16)
    read = read_image(saved(tmp_path, Image.fromarray(wide), name))
    assert torch.equal(read, three(np.array([[0, 0, 1], [128, 254, 255]])))


def test_cmyk_jpeg(tmp_path: Path) -> None:
    image = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    read = read_image(saved(tmp_path, image, "x.jpg"))
    assert read[0].max() < 10 and read[1:].min() > 245


def test_orientation_is_not_applied(tmp_path: Path) -> None:
    image = picture(6, 4, 2)
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate by 90 degrees to look at it"
    path = saved(tmp_path, image, "x.png", exif=exif)
    assert Image.open(path).getexif()[0x0112] == 6
    assert read_image(path).shape == (3, 4, 6)
    assert image_size(path) == (6, 4)


def test_name_need_not_fit_the_format(tmp_path: Path) -> None:
    path = saved(tmp_path, picture(5, 3, 0))
    renamed = path.rename(tmp_path / "x.jpg")
    assert read_image(renamed).shape == (3, 3, 5)


def test_floats_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, Image.fromarray(np.ones((2, 2), np.float32)), "x.tif")
    with pytest.raises(UnreadableImage, match="x.tif: floating-point pixels have no agreed range"):
        read_image(path)


@pytest.mark.parametrize("name", ["x.jpg", "x.png"])
def test_truncated(tmp_path: Path, name: str) -> None:
    path = saved(tmp_path, picture(64, 64, 3), name)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UnreadableImage, match=f"{name}: .*truncated"):
        read_image(path)


@pytest.mark.parametrize("content", [b"", b"not an image", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"])
def test_not_an_image(tmp_path: Path, content: bytes) -> None:
    """PostScript too: PIL would hand it to Ghostscript."""
    path = tmp_path / "x.jpg"
    path.write_bytes(content)
    for read in (read_image, image_size):
        with pytest.raises(UnreadableImage, match="x.jpg: not an image of a known kind"):
            read(path)


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(UnreadableImage, match="gone.jpg: not found"):
        read_image(tmp_path / "gone.jpg")
