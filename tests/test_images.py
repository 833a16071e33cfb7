import io
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from regiontok import read_image
from regiontok.errors import DTypeError, ImageError
from regiontok.images import as_images, as_rgb, read_size
from tests.conftest import for_each


@pytest.fixture
def save(tmp_path):
    def save(image, name, **options):
        image.save(tmp_path / name, **options)
        return tmp_path / name

    return save


red = Image.new("RGB", (30, 20), (200, 10, 10))


def test_rgb_images_are_unchanged(save, china):
    np.testing.assert_array_equal(read_image(save(china, "a.png")), china)


def test_exif_orientation_is_applied(save):
    exif = Image.Exif()
    exif[0x0112] = 6
    image = read_image(save(red, "a.jpg", exif=exif))
    assert image.size == (20, 30)
    assert as_rgb(image).size == (20, 30)  # once is enough


@for_each(mode=["CMYK", "L", "1", "P", "LAB", "YCbCr", "HSV"])
def test_other_colour_modes_become_rgb(mode):
    image = red.convert("RGB").convert(mode) if mode != "LAB" else Image.new("LAB", (30, 20))
    assert as_rgb(image).mode == "RGB"


def test_cmyk_files_keep_their_colours(save):
    image = np.asarray(read_image(save(red.convert("CMYK"), "a.jpg", quality=95))).astype(int)
    assert np.abs(image - np.array([200, 10, 10])).max() < 20


def test_sixteen_bits_are_scaled(save):
    values = np.linspace(0, 65535, 600).astype(np.uint16).reshape(20, 30)
    image = np.asarray(read_image(save(Image.fromarray(values), "a.png")))[..., 0]
    np.testing.assert_allclose(image, values / 257, atol=0.51)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_images_are_composited_over_white(mode):
    clear = Image.new(mode, (4, 4), (0,) * len(mode))
    assert as_rgb(clear).getpixel((0, 0)) == (255, 255, 255)


def test_phone_images_with_a_preview_are_images(save):
    path = save(red, "a.mpo", format="MPO", save_all=True, append_images=[red.resize((3, 2))])
    assert read_image(path).size == (30, 20)


@pytest.mark.parametrize("name", ["a.gif", "a.tiff", "a.webp", "a.png"])
def test_several_frames_are_errors(save, name):
    path = save(
        red, name, save_all=True, append_images=[Image.new("RGB", red.size, colour) for colour in ("blue", "green")]
    )
    with pytest.raises(ImageError, match=rf"{name}: expected a single frame; got 3. Save one"):
        read_image(path)
    with Image.open(path) as image:
        image.seek(1)
        assert as_rgb(image.copy()).size == (30, 20)


def test_floating_point_and_32_bit_images_are_errors(save):
    with pytest.raises(ImageError, match="floating-point pixels have no defined value of white"):
        as_rgb(Image.new("F", (2, 2)))
    with pytest.raises(ImageError, match="range from 0 to 70000, which exceeds 16 bits"):
        as_rgb(Image.fromarray(np.array([[0, 70000]], np.int32)))


@for_each(keep=[0.02, 0.3, 0.9], name=["a.jpg", "a.png", "a.webp", "a.bmp", "a.tiff"])
def test_truncated_files_are_errors(tmp_path, china, name, keep):
    buffer = io.BytesIO()
    china.save(buffer, format=name[2:].replace("jpg", "jpeg"))
    (tmp_path / name).write_bytes(buffer.getvalue()[: int(keep * buffer.tell())])
    with pytest.raises(ImageError, match=rf"{name}: (damaged or truncated|not an image)"):
        read_image(tmp_path / name)


@for_each(content=[b"", b"hello", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", bytes(1000)])
def test_files_without_an_image_are_errors(tmp_path, content):
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(ImageError, match=r"a.jpg: (not an image|damaged)"):
        read_image(tmp_path / "a.jpg")


def test_missing_files_and_folders_are_errors(tmp_path):
    with pytest.raises(ImageError, match="nowhere.jpg: there is no such file"):
        read_image(tmp_path / "nowhere.jpg")
    with pytest.raises(ImageError, match="expected an image; got a folder. Pass the files in it"):
        read_image(tmp_path)


def test_errors_of_decoders_are_image_errors(save, monkeypatch):
    def fail(*_):
        raise RuntimeError("the decoder stumbled")

    path = save(red, "a.png")
    monkeypatch.setattr(Image.Image, "convert", fail)
    with pytest.raises(ImageError, match=r"a.png: damaged or truncated \(the decoder stumbled\)"):
        read_image(path)


@pytest.mark.parametrize("orientation", [1, 6])
def test_truncated_open_files_are_errors(tmp_path, china, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    china.save(tmp_path / "a.jpg", exif=exif)
    (tmp_path / "b.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:5000])
    with Image.open(tmp_path / "b.jpg") as broken, pytest.raises(ImageError, match="image 1: damaged or truncated"):
        as_images([china, broken])


def test_invalid_exif_data_is_ignored(save, monkeypatch):
    def fail(*_, **__):
        raise TypeError("required argument is not an integer")

    monkeypatch.setattr("PIL.ImageOps.exif_transpose", fail)
    assert read_image(save(red, "a.png")).size == (30, 20)


def test_unreadable_files_are_named(save, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Image, "open", refuse)
    with pytest.raises(ImageError, match=r"a.png: cannot be read \(Permission denied\)"):
        read_image(save(red, "a.png"))


@pytest.mark.parametrize("limit", [400, 250])  # Pillow warns above the limit and raises above twice of it
def test_huge_images_are_errors(save, monkeypatch, limit):
    path = save(red, "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(ImageError, match=f"a.png: more pixels than Pillow's limit of {limit}"):
        read_image(path)


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        ([], ImageError, "at least one image; got an empty list"),
        (7, DTypeError, "must be a PIL image, a path or an array, or a list of them; got int"),
        ([red, None], DTypeError, "an image must be a PIL image; got NoneType"),
        ("a.jpg", ImageError, "a.jpg: there is no such file"),
        (np.zeros((4, 4, 3)), ImageError, "image 0: an array must be uint8, from 0 to 255; got float64"),
        (
            [red, np.zeros((3, 4, 4), np.uint8)],
            ImageError,
            r"image 1: an array must be \(height, width, 3\); got \(3, 4, 4\). Use array.transpose\(1, 2, 0\)",
        ),
        (
            np.zeros((4, 4, 2), np.uint8),
            ImageError,
            r"must be \(height, width, 3\) RGB or \(height, width\) greyscale",
        ),
        (np.zeros((4, 0, 3), np.uint8), ImageError, r"must be \(height, width, 3\) RGB"),
        ([red, Image.new("F", (2, 2))], ImageError, "image 1: floating-point pixels"),
    ],
)
def test_invalid_images_are_errors(images, error, message):
    with pytest.raises(error, match=message):
        as_images(images)


def png_of_16_bits(path, values):
    """RGB of 16 bits, which Pillow reads and does not write."""
    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]  # fmt: skip
    whole = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + whole)


def test_dark_16_bit_colours_are_a_warning(tmp_path):
    values = np.random.default_rng(0).integers(0, 4096, (8, 8, 3))
    png_of_16_bits(tmp_path / "dark.png", values)
    with pytest.warns(UserWarning, match="dark.png: all 16-bit colours are below a sixteenth of full brightness"):
        assert read_image(tmp_path / "dark.png").size == (8, 8)
    png_of_16_bits(tmp_path / "full.png", values * 16)
    assert np.asarray(read_image(tmp_path / "full.png")).max() > 200
    png_of_16_bits(tmp_path / "black.png", values * 0)
    assert np.asarray(read_image(tmp_path / "black.png")).max() == 0


@for_each(orientation=[None, *range(1, 9), 77])
def test_sizes_are_read_without_pixels(tmp_path, orientation):
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    Image.new("RGB", (30, 20)).save(tmp_path / "a.jpg", exif=exif)
    upright = read_image(tmp_path / "a.jpg")
    told = orientation if orientation in range(1, 9) else 1
    assert read_size(tmp_path / "a.jpg") == ((upright.height, upright.width), told)
    with pytest.raises(ImageError, match="no.jpg: there is no such file"):
        read_size(tmp_path / "no.jpg")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_decompression_bombs_are_errors_in_threads(tmp_path, monkeypatch):
    """Also those that Pillow only warns of, whose filter is not a thread's own."""
    Image.new("RGB", (12, 12)).save(tmp_path / "bomb.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "image.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)

    def read(number):
        try:
            return read_image(tmp_path / ("bomb.png" if number % 2 else "image.png")).size
        except ImageError as error:
            return "more pixels than Pillow's limit of 100" in str(error)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(read, range(400))) == [(8, 8), True] * 200


def test_brightness_does_not_depend_on_single_pixels():
    dark = np.full((8, 8), 2000, np.uint16)
    bright = dark.copy()
    bright[0, 0] = 5000
    for values in (dark, bright):
        assert np.asarray(as_rgb(Image.fromarray(values)))[4, 4].tolist() == [8, 8, 8]  # 2000 / 65535 of 255
        assert np.asarray(as_images(values)[0])[4, 4].tolist() == [8, 8, 8]


@for_each(bits=[8, 10, 12, 14, 16])
def test_bits_sets_the_white_of_greyscale_images(tmp_path, bits):
    white = 2**bits - 1
    Image.fromarray(np.array([[0, white // 2, white]], np.uint16)).save(tmp_path / "a.png")
    grey = np.asarray(read_image(tmp_path / "a.png", bits=bits))[0, :, 0]
    assert grey[0] == 0
    assert grey[1] in (127, 128)
    assert grey[2] == 255


def test_greyscale_values_beyond_bits_are_errors(tmp_path):
    Image.fromarray(np.array([[0, 4096]], np.uint16)).save(tmp_path / "a.png")
    with pytest.raises(ImageError, match="range from 0 to 4096, which exceeds 12 bits. Increase bits"):
        read_image(tmp_path / "a.png", bits=12)


def test_admit_is_called_before_decoding(tmp_path):
    red.save(tmp_path / "a.png")
    seen = []
    read_image(tmp_path / "a.png", admit=seen.append)
    assert seen == [red.width * red.height]
