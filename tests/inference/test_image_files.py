"""Image files are preprocessed as in evaluation."""

import numpy as np
import pytest
from PIL import Image
from sample_images import make_image, pillow_evaluation_crop

from imta_jax.data import RandomAreaCrop
from imta_jax.inference.image_files import find_image_files, read_image


def test_image_of_any_size_is_preprocessed_as_in_evaluation(tmp_path):
    crop = RandomAreaCrop(size=32, resize=40, min_area=0.1, flip=False)
    for i, (height, width) in enumerate([(90, 120), (121, 77), (40, 300), (20, 25)]):
        image = make_image(height, width, seed=i)
        image.save(tmp_path / "a.png")
        decoded = read_image(tmp_path / "a.png", (32, 32, 3), crop.resize)
        assert decoded.size == (height, width) and decoded.pixels.dtype == np.uint8
        expected = pillow_evaluation_crop(image, crop.resize, crop.size).astype(int)
        # Resizing the crop in one operation rounds once less.
        assert np.abs(decoded.pixels - expected).max() <= 2


def test_image_of_the_networks_size_is_unchanged(tmp_path):
    image = make_image(16, 16)
    image.save(tmp_path / "a.png")
    decoded = read_image(tmp_path / "a.png", (16, 16, 3))
    np.testing.assert_array_equal(decoded.pixels, np.asarray(image))


@pytest.mark.parametrize("size", [(40, 60), (60, 40), (8, 8), (16, 17), (1, 5)])
@pytest.mark.parametrize("shape", [(16, 16, 3), (16, 16, 1), (12, 20, 3)])
def test_small_image_of_another_size_is_scaled_to_cover(tmp_path, size, shape):
    Image.new("RGB", size[::-1], (10, 200, 30)).save(tmp_path / "a.png")
    pixels = read_image(tmp_path / "a.png", shape).pixels
    assert pixels.shape == shape
    assert len(np.unique(pixels.reshape(-1, shape[2]), axis=0)) == 1  # no border


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_pixel_mode_is_converted(tmp_path, mode, channels):
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    if mode == "I;16":
        Image.fromarray(np.full((16, 16), 255 << 8, np.uint16)).save(path)
    else:
        white = Image.new("RGB", (16, 16), "white").convert(mode)
        white.save(path, **({"transparency": b"\0" * 256} if mode == "P" else {}))
    pixels = read_image(path, (16, 16, channels)).pixels
    assert pixels.shape == (16, 16, channels) and (pixels == 255).all()


def test_folders_are_searched_by_suffix_and_files_are_taken_as_given(png_folder, tmp_path):
    (png_folder / "notes.txt").touch()
    assert [path.name for path in find_image_files([png_folder])] == [f"{i}.png" for i in range(5)]
    assert find_image_files([png_folder / "notes.txt"]) == [png_folder / "notes.txt"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty.*\.png"):
        find_image_files([tmp_path / "empty"])
    with pytest.raises(FileNotFoundError, match=r"\*\.png"):
        find_image_files([tmp_path / "*.png"])
