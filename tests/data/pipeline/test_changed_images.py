"""Image files that change between indexing and decoding stop both decoders, by name."""

from pathlib import Path

import pytest
from encoded_samples import encoded, jpeg_of_size
from random_area_crops import CROP, load
from sample_images import config, make_image, write

from imta_jax.data import eval_batches, train_batches
from imta_jax.data.pipeline.host_pipeline import decode_all
from imta_jax.data.sources import SourceRequest, load_source

BOTH = ("tf_data", "pillow")


def of_length(contents, length):
    """The contents with bytes after their end, which decoders ignore."""
    return contents + bytes(length - len(contents))


def changes():
    """(name, contents before, contents now, expected text)."""
    image, png = make_image(30, 40), encoded(make_image(30, 40), "PNG")
    jpeg = encoded(image, "JPEG", quality=95)
    flat = make_image(30, 40, cells=1)
    small_png = encoded(flat, "PNG")
    yield "larger", jpeg, encoded(make_image(300, 400), "JPEG"), r"JPEG of 300 x 400"
    yield "one column", jpeg, encoded(make_image(30, 41), "JPEG"), r"JPEG of 30 x 41"
    yield "png", jpeg, png, r"PNG of 30 x 40"
    yield "gif", png, encoded(image, "GIF"), r"rejected \(neither JPEG nor PNG\)"
    yield "jpeg", png, jpeg, r"JPEG of 30 x 40"
    yield "bmp", jpeg, encoded(image, "BMP"), r"rejected \(neither JPEG nor PNG\)"
    yield "text", jpeg, b"not an image", r"rejected \(neither JPEG nor PNG\)"
    yield "empty", png, b"", r"rejected \(empty file\)"
    yield "size of same length", jpeg, jpeg_of_size(jpeg, 30, 33), r"JPEG of 30 x 33|rejected"
    other = encoded(make_image(30, 41, cells=1), "PNG")
    yield "PNG size of same length", png, of_length(other, len(png)), r"PNG of 30 x 41"
    yield "GIF of same length", jpeg, of_length(encoded(flat, "GIF"), len(jpeg)), r"neither JPEG"
    yield "PNG of same length", jpeg, of_length(small_png, len(jpeg)), r"PNG of 30 x 40"


CHANGES = [pytest.param(*change, id=name) for name, *change in changes()]


@pytest.fixture(scope="module", params=BOTH)
def changed(request, tmp_path_factory):
    """A function from two contents of an image to its path and the changed split."""

    def make(before, now):
        root = tmp_path_factory.mktemp("changed")
        names = [f"{split}/a/{i}.jpg" for split in ("train", "test") for i in range(5)]
        write(root, {name: make_image(30, 40, i) for i, name in enumerate(names)})
        write(root, {"test/a/1.jpg": before})
        split = load(root, image_size=16, resize=18, pipeline=request.param).splits["test"]
        write(root, {"test/a/1.jpg": now})
        return root / "test/a/1.jpg", split

    return make


@pytest.mark.parametrize(("before", "now", "expected"), CHANGES)
def test_changed_image_stops_both_decoders_by_name(changed, before, now, expected):
    path, split = changed(before, now)
    for batches in (
        lambda: eval_batches(split, CROP, 4),
        lambda: train_batches(split, CROP, batch_size=5, seed=0, epoch=0),
    ):
        with pytest.raises(OSError, match=rf"1 image .*\n.*\n  {path}: now .*{expected}") as error:
            list(batches())
        assert "indexed as" in str(error.value) and len(str(error.value).splitlines()) == 3


def test_touched_file_and_other_pixels_of_the_same_size_are_accepted(changed):
    jpeg = encoded(make_image(30, 40), "JPEG")
    path, split = changed(jpeg, encoded(make_image(30, 40, 1), "JPEG"))
    before = split.images.states.copy()
    assert len(list(eval_batches(split, CROP, 4))) == 2
    assert (split.images.states != before).any(axis=1).tolist() == [False, True, *[False] * 3]
    path.touch()
    assert len(list(eval_batches(split, CROP, 4))) == 2


@pytest.mark.parametrize("pipeline", BOTH)
def test_image_that_changes_before_it_becomes_an_array_is_named(tmp_path, pipeline):
    names = [f"{split}/a/{i}.png" for split in ("train", "test") for i in range(5)]
    write(tmp_path, {name: make_image(8, 8, i) for i, name in enumerate(names)})
    fields = config(tmp_path, pipeline=pipeline, test_examples=1)
    images = load_source(SourceRequest.from_config(fields, encoded=True)).splits["train"].images
    path = Path(images.name(3))
    path.write_bytes(encoded(make_image(8, 9), "PNG"))
    with pytest.raises(OSError, match=rf"{path}: now PNG of 8 x 9 .*indexed as PNG of 8 x 8"):
        decode_all(images)
