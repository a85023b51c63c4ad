"""PNG, JPEG and TIFF: exact samples, upright pictures, answers that lie on what came. Judges: Pillow, tifffile."""

import io
import logging
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from medae.errors import InputError, OutputError, UnsupportedImage
from medae.image import Geometry, Image
from medae.io import encode_png, encode_restored, read_image, read_labels, write_image
from medae.io.answer import Algorithm
from medae.io.exif import as_stored, exif_block, orientation_of, upright
from medae.io.guard import DEFAULT_LIMITS
from medae.io.raster import RasterSource

WE = Algorithm("nuclei", "1.2.0", "sha256:" + 64 * "a")
RNG = np.random.default_rng(5)
GREY = RNG.integers(0, 256, (9, 14), np.uint8)
RGB = RNG.integers(0, 256, (9, 14, 3), np.uint8)
RGB16 = RNG.integers(0, 65536, (9, 14, 3)).astype(np.uint16)


def _pil(array: np.ndarray | PIL.Image.Image, kind: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    picture = array if isinstance(array, PIL.Image.Image) else PIL.Image.fromarray(array)
    picture.save(out, kind, **options)
    return out.getvalue()


def _tiff(array: np.ndarray, **options: object) -> bytes:
    out = io.BytesIO()
    tifffile.imwrite(out, array, **options)
    return out.getvalue()


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _png(header: bytes, lines: bytes, *others: bytes) -> bytes:
    parts = (_chunk(b"IHDR", header), *others, _chunk(b"IDAT", zlib.compress(lines)), _chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _picture(image: Image) -> np.ndarray:
    """(rows, columns) or (rows, columns, channels), as Pillow has it."""
    assert image.geometry.shape[0] == 1
    return (
        np.moveaxis(image.pixels[:, 0], 0, -1).squeeze(-1)
        if image.channels == 1
        else np.moveaxis(image.pixels[:, 0], 0, -1)
    )


@pytest.mark.parametrize("array", [GREY, RGB, GREY.astype(np.uint16) * 200], ids=["grey", "rgb", "grey16"])
def test_png_is_read_as_pillow_reads_it(array: np.ndarray) -> None:
    image = read_image(_pil(array))
    assert np.array_equal(_picture(image), array)
    assert image.pixels.dtype == array.dtype
    assert image.source == RasterSource("png", array.dtype.name, 1)
    assert image.geometry.unit == "px"


def test_sixteen_bit_rgb_keeps_its_bits() -> None:
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in RGB16)  # by hand: Pillow has no such picture
    data = _png(struct.pack(">IIBBBBB", 14, 9, 16, 2, 0, 0, 0), rows)
    assert np.array_equal(_picture(read_image(data)), RGB16)
    assert np.array_equal(_picture(read_image(encode_png(RGB16))), RGB16)


def test_small_depths_are_stretched_as_pictures_and_kept_as_labels() -> None:
    for depth, values in ((1, [0, 1]), (2, [0, 1, 2, 3]), (4, list(range(16)))):
        row = "".join(f"{value:0{depth}b}" for value in values).ljust(-(-len(values) * depth // 8) * 8, "0")
        line = b"\0" + int(row, 2).to_bytes(len(row) // 8, "big")
        data = _png(struct.pack(">IIBBBBB", len(values), 1, depth, 0, 0, 0, 0), line)
        top = 2**depth - 1
        assert read_image(data).pixels.ravel().tolist() == [value * 255 // top for value in values]
        assert read_labels(data).pixels.ravel().tolist() == values


def test_palette_is_colour_as_a_picture_and_index_as_labels() -> None:
    for count in (3, 14, 200):  # Pillow writes 2, 4 and 8 bits
        index = RNG.integers(0, count, (7, 10), np.uint8)
        colours = RNG.integers(0, 256, (256, 3), np.uint8)
        picture = PIL.Image.fromarray(index)
        picture.putpalette(colours[:count].ravel().tolist())
        data = _pil(picture, bits={3: 2, 14: 4, 200: 8}[count], transparency=0)
        assert np.array_equal(_picture(read_image(data)), colours[index])
        assert np.array_equal(_picture(read_labels(data)), index)


def test_alpha_is_dropped_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    rgba = np.dstack([RGB, GREY])
    for data in (_pil(rgba), _tiff(rgba, photometric="rgb", extrasamples=["unassalpha"])):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert np.array_equal(_picture(read_image(data)), RGB)
        assert "alpha was dropped: 1 of 4" in caplog.text
    assert np.array_equal(_picture(read_image(_pil(np.dstack([GREY, GREY]), "PNG"))), GREY)


def _adam7(array: np.ndarray, depth: int, colour_type: int) -> bytes:
    lines = b""
    for x, y, dx, dy in (
        (0, 0, 8, 8),
        (4, 0, 8, 8),
        (0, 4, 4, 8),
        (2, 0, 4, 4),
        (0, 2, 2, 4),
        (1, 0, 2, 2),
        (0, 1, 1, 2),
    ):
        part = array[y::dy, x::dx]
        lines += b"".join(b"\0" + row.astype(f">u{depth // 8}").tobytes() for row in part) if part.size else b""
    return _png(struct.pack(">IIBBBBB", array.shape[1], array.shape[0], depth, colour_type, 0, 0, 1), lines)


@given(st.integers(1, 20), st.integers(1, 20), st.sampled_from([8, 16]), st.booleans())
@settings(deadline=None, max_examples=40)
def test_interlaced_png(rows: int, columns: int, depth: int, is_colour: bool) -> None:
    shape = (rows, columns, 3) if is_colour else (rows, columns)
    array = np.random.default_rng(0).integers(0, 2**depth, shape).astype(f"u{depth // 8}")
    assert np.array_equal(_picture(read_image(_adam7(array, depth, 2 if is_colour else 0))), array)


@given(
    st.sampled_from([0, 2, 3, 4, 6, 5]),
    st.sampled_from([1, 2, 4, 8, 16, 3]),
    st.integers(0, 9),
    st.integers(0, 9),
    st.sampled_from([0, 1, 2]),
    st.binary(max_size=200),
    st.binary(max_size=12),
)
@settings(deadline=None, max_examples=400)
def test_well_summed_nonsense_is_refused_before_libpng(
    colour: int, depth: int, rows: int, columns: int, interlace: int, lines: bytes, table: bytes
) -> None:
    header = struct.pack(">IIBBBBB", columns, rows, depth, colour, 0, 0, interlace)
    try:
        image = read_image(_png(header, lines, _chunk(b"PLTE", table)))
    except InputError as error:
        assert "PngError" not in str(error)
    else:
        assert image.geometry.shape == (1, rows, columns)


def test_lines_with_an_unknown_filter_are_refused_before_libpng() -> None:
    header = struct.pack(">IIBBBBB", 3, 2, 8, 0, 0, 0, 0)
    assert read_image(_png(header, b"\4abc\0abc")).pixels.shape == (1, 1, 2, 3)
    with pytest.raises(InputError, match="does not inflate to the declared size") as caught:
        read_image(_png(header, b"\4abc\5abc"))
    assert "PngError" not in str(caught.value)


def test_jpeg_is_read_as_pillow_reads_it() -> None:
    smooth = np.linspace(0, 255, 40 * 30 * 3).reshape(40, 30, 3).astype(np.uint8)
    for picture in (PIL.Image.fromarray(smooth), PIL.Image.fromarray(smooth).convert("L")):
        for options in ({}, {"progressive": True}, {"restart_marker_blocks": 1}):
            data = _pil(picture, "JPEG", **options)
            assert np.array_equal(_picture(read_image(data)), np.asarray(PIL.Image.open(io.BytesIO(data))))
            assert np.array_equal(_picture(read_image(data + b"trailing")), _picture(read_image(data)))


def test_cmyk_is_refused() -> None:
    cmyk = PIL.Image.fromarray(RGB).convert("CMYK")
    for data in (_pil(cmyk, "JPEG"), _pil(cmyk, "TIFF")):
        with pytest.raises(UnsupportedImage, match="Convert it to RGB"):
            read_image(data)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_read_upright(orientation: int) -> None:
    exif = PIL.Image.Exif()
    exif[274] = orientation
    for kind, array in (("JPEG", np.kron(GREY, np.ones((8, 8), np.uint8))), ("PNG", RGB), ("TIFF", RGB)):
        data = _pil(array, kind, exif=exif)
        seen = np.asarray(PIL.ImageOps.exif_transpose(PIL.Image.open(io.BytesIO(data))))
        image = read_image(data)
        assert np.array_equal(_picture(image), seen)
        assert isinstance(image.source, RasterSource) and image.source.orientation == orientation


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_answers_lie_on_what_came_with_and_without_the_tag(orientation: int, kind: str) -> None:
    exif = PIL.Image.Exif()
    exif[274] = orientation
    data = _pil(RGB, kind, exif=exif)
    image = read_image(data)
    (answer,) = encode_restored(image, stem="x", algorithm=WE, description="")
    came, went = PIL.Image.open(io.BytesIO(data)), PIL.Image.open(io.BytesIO(answer.data))
    upright_came, upright_went = (np.asarray(PIL.ImageOps.exif_transpose(each)) for each in (came, went))
    assert np.array_equal(upright_came, upright_went)
    if kind != "TIFF":  # Pillow turns TIFF on its own
        assert np.array_equal(np.asarray(came), np.asarray(went))
    else:
        assert np.array_equal(tifffile.imread(io.BytesIO(data)), tifffile.imread(io.BytesIO(answer.data)))
    assert np.array_equal(read_image(answer.data).pixels, image.pixels)


@given(st.integers(1, 8), st.integers(1, 5), st.integers(1, 5))
@settings(deadline=None)
def test_as_stored_undoes_upright(orientation: int, rows: int, columns: int) -> None:
    pixels = np.arange(2 * rows * columns).reshape(2, 1, rows, columns)
    assert np.array_equal(as_stored(upright(pixels, orientation), orientation), pixels)
    assert orientation_of(exif_block(orientation)) == orientation


@given(st.binary(max_size=60), st.sampled_from([b"", b"II*\0", b"MM\0*"]))
@settings(deadline=None)
def test_any_exif_block_has_an_orientation(tail: bytes, head: bytes) -> None:
    assert 1 <= orientation_of(head + tail) <= 8


STACK = RNG.integers(0, 60000, (4, 9, 14)).astype(np.uint16)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"compression": "zlib", "predictor": True},
        {"compression": "lzw"},
        {"compression": "packbits"},
        {"compression": "zstd", "tile": (16, 16)},
        {"byteorder": ">", "rowsperstrip": 4},
        {"bigtiff": True, "tile": (16, 32)},
    ],
    ids=lambda options: "-".join(options) or "plain",
)
def test_tiff_kinds_and_packings(dtype: str, options: dict[str, object]) -> None:
    if dtype == "float32" and options.get("predictor"):
        options = options | {"predictor": 3}
    for array, photometric in ((STACK[0], "minisblack"), (RGB16, "rgb")):
        values = array.astype(dtype)
        image = read_image(_tiff(values, photometric=photometric, **options))
        assert np.array_equal(_picture(image), values)
        assert image.pixels.dtype == np.dtype(dtype) and image.pixels.dtype.isnative


def test_equal_pages_are_slices_and_others_are_refused() -> None:
    for array, photometric in ((STACK, "minisblack"), (np.stack([RGB, RGB[::-1]]), "rgb")):
        image = read_image(_tiff(array, photometric=photometric))
        assert image.geometry.shape[0] == len(array)
        expected = array[None] if array.ndim == 3 else np.moveaxis(array, -1, 0)
        assert np.array_equal(image.pixels, expected)
    out = io.BytesIO()
    with tifffile.TiffWriter(out) as writer:
        writer.write(GREY, photometric="minisblack", metadata=None)
        writer.write(RGB, photometric="rgb", metadata=None)
    with pytest.raises(UnsupportedImage, match="2 pictures of different kinds"):
        read_image(out.getvalue())


def test_reduced_copies_are_left_out() -> None:
    out = io.BytesIO()
    with tifffile.TiffWriter(out) as writer:
        writer.write(GREY, photometric="minisblack", metadata=None)
        writer.write(GREY[::2, ::2], photometric="minisblack", subfiletype=1, metadata=None)
    assert np.array_equal(_picture(read_image(out.getvalue())), GREY)


def test_white_is_zero_bilevel_and_palette_tiff() -> None:
    assert np.array_equal(_picture(read_image(_tiff(GREY, photometric="miniswhite"))), 255 - GREY)
    bits = GREY > 100
    data = _pil(PIL.Image.fromarray(bits), "TIFF")
    assert np.array_equal(_picture(read_image(data)), bits * np.uint8(255))
    assert np.array_equal(_picture(read_labels(data)), bits)
    table = RNG.integers(0, 256, (3, 256)).astype(np.uint16) * 257
    data = _tiff(GREY, photometric="palette", colormap=table)
    assert np.array_equal(_picture(read_image(data)), np.moveaxis(table[:, GREY] // 257, 0, -1))
    assert np.array_equal(_picture(read_labels(data)), GREY)


def test_jpeg_tiles_are_read_as_tifffile_reads_them() -> None:
    smooth = np.linspace(0, 255, 50 * 70 * 3).reshape(50, 70, 3).astype(np.uint8)
    for options in ({"tile": (32, 32)}, {"rowsperstrip": 16}):
        data = _tiff(smooth, photometric="rgb", compression="jpeg", **options)
        assert np.array_equal(_picture(read_image(data)), tifffile.imread(io.BytesIO(data)))


def test_nan_is_kept_for_the_model_to_refuse() -> None:
    values = np.full((3, 4), np.nan, np.float32)
    assert np.isnan(read_image(_tiff(values)).pixels).all()


def test_complex_samples_and_other_compressions_are_refused() -> None:
    with pytest.raises(UnsupportedImage, match="samples of"):
        read_image(_tiff(np.ones((3, 4), np.complex64)))
    with pytest.raises(UnsupportedImage, match="compression 34925"):
        read_image(_tiff(GREY, compression="lzma"))


@pytest.mark.parametrize(
    ("resolution", "unit", "spacing"),
    [
        ((40000, 20000), "centimeter", (5e-4, 2.5e-4)),  # 0.25 um, as a slide scanner writes it
        ((101600, 101600), "inch", (2.5e-4, 2.5e-4)),
        ((72, 72), "inch", None),
        ((300, 300), "inch", None),
        ((10, 10), "centimeter", None),  # what libvips writes when it knows nothing
        ((40000, 40000), "none", None),
        ((0, 0), "centimeter", None),
    ],
)
def test_only_measured_resolutions_are_believed(
    resolution: tuple[int, int], unit: str, spacing: tuple[float, float] | None
) -> None:
    geometry = read_image(_tiff(GREY, resolution=resolution, resolutionunit=unit)).geometry
    assert geometry.unit == ("px" if spacing is None else "mm")
    if spacing is not None:
        assert geometry.spacing_mm[1:] == pytest.approx(spacing, rel=1e-4)


@pytest.mark.parametrize("orientation", [1, 6])
def test_our_own_tiff_keeps_its_size(tmp_path: Path, orientation: int) -> None:
    geometry = Geometry.picture(9, 14, spacing_mm=(0.8, 0.35))
    write_image(Image(GREY[None, None], geometry, RasterSource("tiff", "uint8", orientation)), tmp_path / "x.tif")
    again = read_image(tmp_path / "x.tif")
    again.geometry.require_same_grid(geometry)
    assert np.array_equal(again.pixels, GREY[None, None])
    with tifffile.TiffFile(
        tmp_path / "x.tif"
    ) as tif:  # columns are 0.35 mm apart as seen, rows as stored on their side
        across, per = tif.pages.first.tags.valueof(282)
    assert 10 * per / across == pytest.approx(0.35 if orientation == 1 else 0.8)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".tiff", ".PNG"])
@pytest.mark.parametrize("pixels", [GREY[None, None], np.moveaxis(RGB16, -1, 0)[:, None]], ids=["grey", "rgb16"])
def test_written_and_read_is_the_same(tmp_path: Path, suffix: str, pixels: np.ndarray) -> None:
    image = Image(pixels, Geometry.picture(9, 14))
    write_image(image, tmp_path / f"x{suffix}")
    again = read_image(tmp_path / f"x{suffix}")
    assert np.array_equal(again.pixels, pixels) and again.pixels.dtype == pixels.dtype
    again.geometry.require_same_grid(image.geometry)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint32", "float32", "float64"])
@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_tiff_holds_any_stack(tmp_path: Path, dtype: str, channels: int) -> None:
    pixels = RNG.integers(0, 200, (channels, 4, 5, 7)).astype(dtype)
    image = Image(pixels, Geometry.picture(5, 7, slices=4))
    write_image(image, tmp_path / "x.tif")
    again = read_image(tmp_path / "x.tif")
    assert np.array_equal(again.pixels, pixels) and again.pixels.dtype == pixels.dtype


def test_what_a_format_cannot_hold_is_refused(tmp_path: Path) -> None:
    grid = Geometry.picture(9, 14)
    for pixels, suffix, says in (
        (GREY[None, None].astype(np.float32), ".png", "uint8 or uint16"),
        (np.stack([GREY, GREY])[:, None], ".png", "one or three channels"),
        (GREY[None, None], ".jpg", "written as"),
        (GREY[None, None], "", "written as"),
    ):
        with pytest.raises(OutputError, match=says):
            write_image(Image(pixels, grid), tmp_path / f"x{suffix}")
    with pytest.raises(OutputError, match="one slice, got 4"):
        write_image(Image(STACK[None], Geometry.picture(9, 14, slices=4)), tmp_path / "x.png")
    assert not list(tmp_path.iterdir())


def test_damaged_png_costs_no_reference() -> None:
    """imagecodecs loses one of None each time that libpng gives up; a few thousand would end the process."""
    data = bytearray(_pil(RGB))
    data[-30] ^= 0xFF
    before = sys.getrefcount(None)
    for _ in range(300):
        with pytest.raises(InputError):
            read_image(bytes(data))
    assert sys.getrefcount(None) > before - 100


def test_real_pictures_are_read_as_pillow_reads_them(shared_data: Path) -> None:
    paths = [*(shared_data / "brain_mri_tumor_navoneel").glob("*/*"), *(shared_data / "ldct_png_pairs").glob("*/*.png")]
    assert len(paths) > 100
    for path in paths[::4]:
        with PIL.Image.open(path) as judge:
            expected = np.asarray(PIL.ImageOps.exif_transpose(judge))
        pixels = _picture(read_image(path))
        assert np.array_equal(pixels, expected[..., :3] if expected.ndim == 3 else expected)


def test_odd_pictures_are_read_or_refused_with_a_reason(shared_data: Path) -> None:
    read = {}
    for path in sorted((shared_data / "wsi_small" / "odd_tiff").iterdir()):
        try:
            read[path.name] = read_image(path)
        except InputError as error:
            assert len(str(error)) > 30
    for orientation in range(9):
        name = f"test_orient{orientation}.tif"
        with PIL.Image.open(shared_data / "wsi_small" / "odd_tiff" / name) as judge:  # Pillow turns TIFF by itself
            assert np.array_equal(_picture(read[name]), np.asarray(judge))
    assert read["test_RGB_16.png"].pixels.dtype == np.uint16
    assert read["test_RGB_16.png"].pixels.max() > 255
    with pytest.raises(UnsupportedImage, match="different kinds"):
        read_image(shared_data / "wsi_small" / "CMU-1-Small-Region.svs", limits=DEFAULT_LIMITS)
