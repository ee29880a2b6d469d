"""Image files for inference: preprocessing, search and invalid files."""

import errno
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from encoded_samples import encoded
from PIL import Image, ImageOps
from sample_images import make_image, pillow_evaluation_crop

from imta_jax.data import EvaluationTransform
from imta_jax.inference.image_files import find_image_files, read_image


def small(height, width, channels):
    """The transform of a network of this size, without padding."""
    zeros, ones = (0.0,) * channels, (1.0,) * channels
    return EvaluationTransform((height, width, channels), zeros, ones)


def test_image_of_any_size_is_resized_and_cropped(tmp_path):
    transform = replace(small(32, 32, 3), resize=40)
    for i, (height, width) in enumerate([(90, 120), (121, 77), (40, 300), (20, 25)]):
        image = make_image(height, width, seed=i)
        image.save(tmp_path / "a.png")
        decoded = read_image(tmp_path / "a.png", transform)
        assert decoded.size == (height, width) and decoded.pixels.dtype == np.uint8
        expected = pillow_evaluation_crop(image, 40, 32).astype(int)
        # Resizing the crop in one operation rounds once less.
        assert np.abs(decoded.pixels - expected).max() <= 1


def test_image_of_the_size_of_the_network_is_unchanged(tmp_path):
    image = make_image(16, 16)
    image.save(tmp_path / "a.png")
    decoded = read_image(tmp_path / "a.png", small(16, 16, 3))
    np.testing.assert_array_equal(decoded.pixels, np.asarray(image))


@pytest.mark.parametrize("size", [(40, 60), (8, 8), (16, 17), (1, 5), (20, 12)])
def test_small_image_of_another_size_is_rejected(tmp_path, size):
    Image.new("RGB", size[::-1]).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=rf"a\.png.*{size[0]} x {size[1]}.*12 x 20"):
        read_image(tmp_path / "a.png", small(12, 20, 3))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_ignored_or_applied(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = make_image(16, 16)
    image.save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as file:
        stored, upright = np.asarray(image), np.asarray(ImageOps.exif_transpose(file))
    ignore = read_image(tmp_path / "a.png", small(16, 16, 3)).pixels
    apply = read_image(
        tmp_path / "a.png", replace(small(16, 16, 3), exif_orientation="apply")
    ).pixels
    np.testing.assert_array_equal(ignore, stored)
    np.testing.assert_array_equal(apply, upright)
    assert np.array_equal(ignore, apply) == (orientation == 1)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_pixel_mode_is_converted(tmp_path, mode, channels):
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    if mode == "I;16":
        Image.fromarray(np.full((16, 16), 255 << 8, np.uint16)).save(path)
    else:
        white = Image.new("RGB", (16, 16), "white").convert(mode)
        white.save(path, **({"transparency": b"\0" * 256} if mode == "P" else {}))
    pixels = read_image(path, small(16, 16, channels)).pixels
    assert pixels.shape == (16, 16, channels) and (pixels == 255).all()


def test_folders_are_searched_by_suffix_and_files_may_have_any_name(png_folder, tmp_path):
    (png_folder / "notes.txt").touch()
    assert [path.name for path in find_image_files([png_folder])] == [f"{i}.png" for i in range(5)]
    assert find_image_files([png_folder / "notes.txt"]) == [png_folder / "notes.txt"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty.*\.png"):
        find_image_files([tmp_path / "empty"])
    with pytest.raises(FileNotFoundError, match=r"\*\.png"):
        find_image_files([tmp_path / "*.png"])


def test_hidden_files_are_ignored_in_folders_and_read_when_named(png_folder):
    content = (png_folder / "0.png").read_bytes()
    for name in ("._0.png", ".ipynb_checkpoints/0.png", "sub/.hidden/deep/0.png"):
        (png_folder / name).parent.mkdir(parents=True, exist_ok=True)
        (png_folder / name).write_bytes(content)
    assert [path.name for path in find_image_files([png_folder])] == [f"{i}.png" for i in range(5)]
    assert find_image_files([png_folder / "._0.png"]) == [png_folder / "._0.png"]


def test_links_in_folders_are_followed_as_in_training(png_folder, tmp_path):
    (tmp_path / "given").mkdir()
    (tmp_path / "given/linked").symlink_to(png_folder)
    (png_folder / "above").symlink_to(tmp_path / "given")  # a cycle
    actual = find_image_files([tmp_path / "given"])
    assert [path.name for path in actual] == [f"{i}.png" for i in range(5)]


def test_image_in_a_folder_with_the_name_of_an_image_is_ignored_as_in_training(png_folder):
    (png_folder / "6.png").mkdir()
    make_image(16, 16).save(png_folder / "6.png/1.png")
    assert [path.name for path in find_image_files([png_folder])][5:] == ["6.png"]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.webp", encoded(Image.new("RGB", (16, 16)), "WEBP"), "neither JPEG nor PNG"),
        ("a.jpg", encoded(Image.new("RGB", (16, 16)), "GIF"), "neither JPEG nor PNG"),
        ("a.png", b"", "empty file"),
        ("a.jpg", encoded(make_image(16, 16), "JPEG")[:400] + b"\xff\xd9", "truncated"),
    ],
)
def test_file_that_training_skips_raises_with_the_same_reason(tmp_path, name, content, reason):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name}.*{reason}"):
        read_image(tmp_path / name, small(16, 16, 3))


def test_file_larger_than_the_memory_is_rejected_without_reading_it(tmp_path):
    with (tmp_path / "a.jpg").open("wb") as file:
        file.truncate(10**12)  # takes no space
    with pytest.raises(ValueError, match=r"a\.jpg.*1,073,741,824 bytes"):
        read_image(tmp_path / "a.jpg", small(16, 16, 3))


def test_broken_link_is_rejected_and_ends_no_batch(tmp_path):
    (tmp_path / "a.jpg").symlink_to(tmp_path / "nothing.jpg")
    (path,) = find_image_files([tmp_path / "a.jpg"])
    with pytest.raises(ValueError, match=r"a\.jpg.*not a regular file"):
        read_image(path, small(16, 16, 3))


def test_names_in_a_folder_that_are_not_files_are_listed_and_rejected(tmp_path):
    make_image(16, 16).save(tmp_path / "a.png")
    (tmp_path / "broken.png").symlink_to(tmp_path / "nothing.png")
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    first, *others = find_image_files([tmp_path])
    assert read_image(first, small(16, 16, 3)).size == (16, 16)
    assert [path.name for path in others] == ["broken.png", "folder.png", "pipe.png"]
    for path in others:
        with pytest.raises(ValueError, match=rf"{path.name}.*not a regular file"):
            read_image(path, small(16, 16, 3))


@pytest.fixture
def locked(png_folder, monkeypatch):
    """A folder below `png_folder` that seems to have mode 000, since tests may run as root."""
    folder = png_folder / "locked"
    folder.mkdir()
    make_image(16, 16).save(folder / "a.png")

    def deny(module, name, is_denied):
        function = getattr(module, name)

        def checked(path, *arguments, **options):
            if is_denied(Path(path)):
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return function(path, *arguments, **options)

        monkeypatch.setattr(module, name, checked)

    for name in ("listdir", "scandir"):
        deny(os, name, lambda path: path == folder)
    deny(Path, "stat", lambda path: folder in path.parents)
    return folder


def test_folder_that_may_not_be_read_is_listed_and_rejected(png_folder, locked):
    *images, path = find_image_files([png_folder])
    assert len(images) == 5 and path == locked
    assert find_image_files([locked]) == [locked]
    with pytest.raises(ValueError, match=r"locked.*cannot be read"):
        read_image(path, small(16, 16, 3))


def test_file_in_a_folder_that_may_not_be_read_is_listed_and_rejected(locked):
    assert find_image_files([locked / "a.png"]) == [locked / "a.png"]
    with pytest.raises(ValueError, match=r"a\.png.*cannot be read"):
        read_image(locked / "a.png", small(16, 16, 3))


def test_empty_path_is_not_the_current_folder(png_folder, monkeypatch):
    monkeypatch.chdir(png_folder)
    for empty in ("", " "):
        with pytest.raises(ValueError, match="image path is empty"):
            find_image_files([empty])


def test_pipe_raises_without_being_opened(tmp_path):
    os.mkfifo(tmp_path / "a.jpg")
    with pytest.raises(ValueError, match=r"a\.jpg.*not a regular file"):
        read_image(tmp_path / "a.jpg", small(16, 16, 3))
