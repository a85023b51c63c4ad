"""The pool of decoders: the same images as here, whatever happens to a decoder, and whatever one sends."""

import asyncio
import gzip
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import psutil
import pytest
from PIL import Image as Picture
from pydicom.data import get_testdata_files

from medae.errors import InputError, LimitExceeded, SeriesError, UnreadableImage, UnsupportedImage
from medae.image import Image
from medae.io import read_image, read_labels, write_image
from medae.io.dicom import DicomSource
from medae_service import decoder, packets
from medae_service.decoded import Breach, Decoded, DecoderFault, image_of, judged, require_pixels
from medae_service.decoding import PATIENCE, Decoders
from medae_service.packets import Packet
from medae_service.problems import Refusal
from medae_service.settings import WorkerSettings
from medae_service.uploads import Uploaded
from tests.batch_parts import write_series
from tests.dicom_made import sample
from tests.service_parts import png, recorded_log
from tests.test_io_volumes import MHA, nrrd

T = TypeVar("T")
AS_IMAGE = {"labels": False, "series": None, "regular_grid": False}
SERIES = [Path(name) for name in sorted(get_testdata_files("dicomdirtests/98892001/CT5N/*"))]


def run(work: Callable[[Decoders], Coroutine[Any, Any, T]], **settings: Any) -> T:
    """What `work` gives with one decoder, or as many as it says."""

    async def scenario() -> T:
        decoders = Decoders(WorkerSettings(**{"decoders": 1} | settings))
        try:
            return await work(decoders)
        finally:
            decoders.close()

    return asyncio.run(scenario())


def read_all(*requests: Sequence[Uploaded]) -> list[Image]:
    async def work(decoders: Decoders) -> list[Image]:
        return [await decoders.read(files) for files in requests]

    return run(work)


def children(count: int = 1) -> list[psutil.Process]:
    """The decoders of this process, once they are there."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        found = [child for child in psutil.Process().children() if decoder.__name__ in child.cmdline()]
        if len(found) == count:
            return found
        time.sleep(0.01)
    raise AssertionError(f"not {count} decoders")


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not holds():
            await asyncio.sleep(0.01)


def decode_limit(error: BaseException) -> None:
    assert isinstance(error, Refusal)
    assert (error.status, error.code) == (422, "decode-limit")


async def refused(reading: Awaitable[Image]) -> None:
    with pytest.raises(Refusal) as caught:
        await reading
    decode_limit(caught.value)


# the same images


def picture(kind: str, pixels: np.ndarray, **options: Any) -> bytes:
    target = BytesIO()
    Picture.fromarray(pixels).save(target, kind, **options)
    return target.getvalue()


def rotated_jpeg() -> bytes:
    exif = Picture.Exif()
    exif[274] = 6
    pixels = np.random.default_rng(1).integers(0, 256, (20, 31, 3), np.uint8)
    return picture("JPEG", pixels, exif=exif)


def written(image: Image, folder: Path, name: str) -> bytes:
    write_image(image, folder / name)
    return (folder / name).read_bytes()


@pytest.fixture
def pictures(tilted_volume: Image, tmp_path: Path) -> list[bytes]:
    rng = np.random.default_rng(0)
    stack = Image.from_picture(rng.random((17, 23, 4), np.float32), spacing_mm=(0.001, 0.002))
    return [
        png(),
        picture("PNG", rng.integers(0, 256, (9, 5, 4), np.uint8)),
        picture("PNG", rng.integers(0, 65536, (9, 5), np.uint16)),
        rotated_jpeg(),
        written(stack, tmp_path, "stack.tif"),
        written(tilted_volume, tmp_path, "volume.nii.gz"),
        written(tilted_volume, tmp_path, "volume.nii"),
        written(replace(stack, volumes=2, pixels=np.concatenate([stack.pixels] * 2)), tmp_path, "volumes.nii"),
        MHA.format(file="LOCAL").encode() + bytes(range(48)),
        nrrd(np.ones((2, 3, 4)), "space: ras", "space directions: (1,0,0) (0,1,0) (0,0,1)"),
    ]


def same(one: Image, other: Image) -> None:
    assert one.pixels.dtype == other.pixels.dtype
    np.testing.assert_array_equal(one.pixels, other.pixels)
    assert not one.pixels.flags.writeable
    np.testing.assert_array_equal(one.geometry.affine, other.geometry.affine)
    assert (one.geometry.shape, one.geometry.unit) == (other.geometry.shape, other.geometry.unit)
    assert one.volumes == other.volumes
    assert one.geometry.frame_of_reference == other.geometry.frame_of_reference
    assert type(one.source) is type(other.source)
    if not isinstance(one.source, DicomSource):
        assert one.source == other.source
        return
    assert isinstance(other.source, DicomSource)
    assert one.source.datasets == other.source.datasets
    assert one.source.origins == other.source.origins
    assert one.source.frames == other.source.frames
    for mine, its in zip(one.source.datasets, other.source.datasets, strict=True):
        assert getattr(mine, "file_meta", None) == getattr(its, "file_meta", None)
        assert mine.original_encoding == its.original_encoding
    assert (one.source.padding is None) == (other.source.padding is None)
    if one.source.padding is not None:
        np.testing.assert_array_equal(one.source.padding, other.source.padding)


def test_pictures_and_volumes_are_the_same_as_here(pictures: list[bytes]) -> None:
    for read, data in zip(read_all(*[[data] for data in pictures]), pictures, strict=True):
        same(read, read_image(data))


def test_a_series_in_any_order_has_its_headers(tmp_path: Path) -> None:
    data = [path.read_bytes() for path in reversed(SERIES)]
    spooled = [tmp_path / f"{index}" for index in range(len(data))]
    for path, content in zip(spooled, data, strict=True):
        path.write_bytes(content)
    mixed: list[Uploaded] = [*spooled[:2], *data[2:]]
    expected = read_image(mixed)
    assert len(SERIES) > 3 and expected.geometry.frame_of_reference
    for read in read_all(mixed, list(data)):
        same(read, expected)


def test_every_dicom_sample_is_read_or_refused_as_here() -> None:
    """Compressed ones, big-endian ones, ones without preamble or with broken headers."""
    files = [Path(name) for name in sorted(get_testdata_files("*.dcm")) if Path(name).stat().st_size < 1 << 16][::2]
    assert len(files) > 30

    async def work(decoders: Decoders) -> int:
        read = 0
        for path in files:
            try:
                expected = read_image(path)
            except InputError as error:
                with pytest.raises(InputError) as caught:
                    await decoders.read([path.read_bytes()])
                assert (caught.value.code, str(caught.value)) == (error.code, str(error))
            else:
                same(await decoders.read([path]), expected)
                read += 1
        return read

    assert run(work) > 10


def test_padding_and_compressed_pixels_come_along() -> None:
    padded, compressed = sample("CT_small.dcm"), sample("MR_small_jp2klossless.dcm")
    for read, path in zip(read_all([padded], [compressed]), (padded, compressed), strict=True):
        same(read, read_image(path))


def test_labels_are_read_as_numbers() -> None:
    palette = Picture.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3), "P")
    palette.putpalette([10, 20, 30] * 6)
    target = BytesIO()
    palette.save(target, "PNG", bits=4)

    async def work(decoders: Decoders) -> tuple[Image, Image]:
        data = [target.getvalue()]
        return await decoders.read(data, as_labels=True), await decoders.read(data)

    labels, colours = run(work)
    same(labels, read_labels(target.getvalue()))
    assert labels.channels == 1 and colours.channels == 3


def test_one_of_several_series_and_slices_made_even(tmp_path: Path) -> None:
    two = [*write_series(tmp_path / "a", [0, 5], "1.2.3.1"), *write_series(tmp_path / "b", [0, 5, 15, 20], "1.2.3.2")]

    async def work(decoders: Decoders) -> tuple[Image, Image]:
        with pytest.raises(SeriesError, match="choose one by its number"):
            await decoders.read(two)
        return await decoders.read(two, series=1), await decoders.read(two, series="1.2.3.2", regular_grid=True)

    chosen, even = run(work)
    same(chosen, read_image(two, series="1.2.3.1"))
    same(even, read_image(two, series=2, regular_grid=True))
    assert chosen.geometry.shape[0] == 2 and even.geometry.shape[0] == 5


@pytest.mark.parametrize(
    ("files", "error"),
    [
        ([b""], UnreadableImage),
        ([png()[:60]], UnreadableImage),
        ([b"%PDF-1.4"], UnsupportedImage),
        ([png(), png()], SeriesError),
        ([gzip.compress(b"x" * 600)], UnsupportedImage),
    ],
)
def test_refusals_are_the_same_as_here(files: list[bytes], error: type[InputError]) -> None:
    with pytest.raises(error) as here:
        read_image(files if len(files) > 1 else files[0])
    with pytest.raises(error) as there:
        read_all(files)
    assert str(there.value) == str(here.value)


def test_the_limits_are_the_services() -> None:
    async def work(decoders: Decoders) -> Image:
        return await decoders.read([png()])

    with pytest.raises(LimitExceeded):
        run(work, limits={"pixels": 100})


def test_more_requests_than_decoders_wait_their_turn() -> None:
    async def work(decoders: Decoders) -> list[Image]:
        return await asyncio.gather(*[decoders.read([png(seed=seed)]) for seed in range(40)])

    for seed, image in enumerate(run(work, decoders=2)):
        np.testing.assert_array_equal(image.pixels, read_image(png(seed=seed)).pixels)


# limits, crashes, and who waits no more


def bomb(rows: int) -> bytes:
    """A sound TIFF that decodes to rows x rows bytes, of a few kilobytes a megabyte."""
    import tifffile

    target = BytesIO()
    plane = np.zeros((rows, rows), np.uint8)
    tifffile.imwrite(target, plane, compression="zlib", rowsperstrip=64, maxworkers=1)
    return target.getvalue()


def test_who_needs_too_much_memory_is_refused_and_the_next_is_read() -> None:
    large = bomb(9000)

    async def work(decoders: Decoders) -> tuple[int, int]:
        await decoders.read([png()])
        (before,) = children()
        await refused(decoders.read([large]))
        same(await decoders.read([png()]), read_image(png()))
        (after,) = children()
        return before.pid, after.pid

    before, after = run(work, decode_memory_bytes=320 << 20)
    assert before != after
    same(read_all([large])[0], read_image(large))  # it is not the file


def test_who_takes_too_long_is_refused_and_the_next_is_read() -> None:
    async def work(decoders: Decoders) -> None:
        await decoders.read([png()])
        os.kill(children()[0].pid, signal.SIGSTOP)
        begin = time.monotonic()
        await refused(decoders.read([png()]))
        assert 0.9 < time.monotonic() - begin < 3
        same(await decoders.read([png()]), read_image(png()))

    run(work, decode_seconds=1)


def test_a_crash_costs_one_request() -> None:
    async def work(decoders: Decoders) -> None:
        await decoders.read([png()])
        (child,) = children()
        child.suspend()
        hit = asyncio.create_task(decoders.read([png()]))
        behind = asyncio.create_task(decoders.read([png()]))
        await asyncio.sleep(0.1)
        child.kill()
        await refused(hit)
        same(await behind, read_image(png()))

    run(work)


def test_a_decoder_that_died_while_idle_costs_none() -> None:
    async def work(decoders: Decoders) -> None:
        for _ in range(3):
            await decoders.read([png()])
            for child in children(2):
                child.kill()
                while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
                    await asyncio.sleep(0.01)
            await asyncio.sleep(0.05)  # for the event loop to hear of it
        same(await decoders.read([png()]), read_image(png()))

    run(work, decoders=2)


def test_who_leaves_frees_the_decoder() -> None:
    async def work(decoders: Decoders) -> None:
        await decoders.read([png()])
        (child,) = children()
        child.suspend()
        left = asyncio.create_task(decoders.read([png()]))
        behind = asyncio.create_task(decoders.read([png()]))
        await asyncio.sleep(0.05)
        left.cancel()
        with pytest.raises(asyncio.CancelledError):
            await left
        begin = time.monotonic()
        same(await behind, read_image(png()))
        assert time.monotonic() - begin > PATIENCE / 2
        assert children()[0].pid != child.pid

    run(work)


def test_who_leaves_shortly_before_the_end_costs_no_decoder() -> None:
    async def work(decoders: Decoders) -> None:
        await decoders.read([png()])
        (child,) = children()
        for _ in range(5):
            left = asyncio.create_task(decoders.read([png(900, 900)]))
            await asyncio.sleep(0.002)
            left.cancel()
        waiting = asyncio.create_task(decoders.read([png()]))
        await asyncio.sleep(0)
        waiting.cancel()  # while it waits for its turn
        same(await decoders.read([png()]), read_image(png()))
        assert children() == [child]

    run(work)


def test_nothing_is_left_behind() -> None:
    async def work(decoders: Decoders) -> None:
        process = psutil.Process()
        await decoders.read([png()])
        open_files = process.num_fds()
        memory = process.memory_info().rss
        for size in (300, 2500) * 5:  # copied, and mapped
            await decoders.read([png(size, size)])
        await asyncio.sleep(0.01)  # the event loop forgets the last one
        assert process.num_fds() == open_files
        assert process.memory_info().rss - memory < 64 << 20
        (child,) = children()
        await until(lambda: child.num_fds() == 4)

    run(work)
    assert not [child for child in psutil.Process().children() if decoder.__name__ in child.cmdline()]


# what a decoder has, and has not


def test_a_decoder_has_nothing_of_the_service() -> None:
    async def work(decoders: Decoders) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            listening.set_inheritable(True)
            await decoders.read([png()])
            (child,) = children()
            await until(lambda: child.num_fds() == 4)
            links = {name: os.readlink(f"/proc/{child.pid}/fd/{name}") for name in os.listdir(f"/proc/{child.pid}/fd")}
        assert links.pop("0").startswith("socket:")
        assert {links.pop("1"), links.pop("2")} == {"/dev/null"}
        assert [link.partition(" ")[0] for link in links.values()] == ["/memfd:medae"]  # the page
        assert not child.net_connections("inet")
        maps = Path(f"/proc/{child.pid}/maps").read_text()
        assert "imagecodecs" in maps and "torch" not in maps

    run(work)


def test_a_decoder_is_confined() -> None:
    async def work(decoders: Decoders) -> None:
        await decoders.read([png()])
        (child,) = children()
        assert child.rlimit(psutil.RLIMIT_AS) == (1 << 30, 1 << 30)
        assert child.rlimit(psutil.RLIMIT_FSIZE) == (1 << 30, 1 << 30)
        assert child.rlimit(psutil.RLIMIT_CORE) == (1, 1)
        assert child.rlimit(psutil.RLIMIT_NPROC) == (0, 0)
        assert 5 < child.rlimit(psutil.RLIMIT_CPU)[0] < 30
        status = Path(f"/proc/{child.pid}/status").read_text()
        assert "NoNewPrivs:\t1" in status
        child.terminate()  # whoever stops the service tells all its processes; requests in flight are finished
        child.send_signal(signal.SIGINT)
        same(await decoders.read([png()]), read_image(png()))
        assert children() == [child]

    run(work, decode_memory_bytes=1 << 30, decode_seconds=5)


PARENT = """
import asyncio, os, sys
from medae_service.decoding import Decoders
from medae_service.settings import WorkerSettings
async def main():
    decoders = Decoders(WorkerSettings(decoders=2))
    data = [open(sys.argv[1], "rb").read()]
    await asyncio.gather(*[decoders.read(data) for _ in range(20)])
    print("ready", flush=True)
    {after}
asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("after", "stopped"), [("await asyncio.sleep(60)", False), ("await asyncio.sleep(60)", True), ("pass", False)]
)
def test_decoders_end_with_their_parent(tmp_path: Path, after: str, stopped: bool) -> None:
    """However it dies, whatever they do; also where nobody closes them."""
    path = tmp_path / "picture"
    path.write_bytes(png())
    with subprocess.Popen(
        [sys.executable, "-c", PARENT.format(after=after), str(path)], stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout is not None and parent.stdout.readline() == b"ready\n"
        if after != "pass":
            orphans = psutil.Process(parent.pid).children()
            assert len(orphans) == 2
            if stopped:
                orphans[0].suspend()  # as one that never looks at its channel
            parent.kill()
            _, alive = psutil.wait_procs(orphans, timeout=5)
            assert not alive
    if after == "pass":
        assert parent.returncode == 0


# what a decoder sends


_, PAGE = packets.new_page()


def packet(header: dict[str, Any], *blobs: Any) -> Packet:
    """In a file of its own."""
    text = json.dumps(header).encode()
    parts = [memoryview(part) for part in (*blobs, text)]
    size = sum(map(len, parts))
    return Packet(packets.PLACE.pack(size - len(text), size), packets.sealed(parts), PAGE)


def in_page(header: dict[str, Any], *blobs: Any) -> Packet:
    """In the page, as a decoder sends it."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, its:
        packets.send(its, PAGE, header, blobs)
        return packets.receive(ours, PAGE)


WAYS = pytest.mark.parametrize("way", [packet, in_page])


def described(**changes: Any) -> dict[str, Any]:
    header, _ = decoder.answer([png()], AS_IMAGE, WorkerSettings().limits)
    return header | changes


PIXELS = bytes(37 * 51)


def judge(sent: Packet) -> Any:
    try:
        return judged(sent, most=1 << 20, most_header=1 << 16)
    finally:
        if sent.file is not None:  # it is closed, however it was judged
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(sent.file)


@WAYS
def test_an_honest_packet(way: Callable[..., Packet]) -> None:
    reply = judge(way(described(), PIXELS))
    assert isinstance(reply, Decoded)
    assert image_of(require_pixels(reply), [png()]).pixels.sum() == 0


def test_what_lies_in_the_page_is_copied_before_it_is_judged() -> None:
    """The next answer lies in the same page, and a decoder that was taken over may write there at any moment."""
    reply = judge(in_page(described(), PIXELS))
    PAGE[: len(PIXELS)] = b"\xff" * len(PIXELS)
    assert image_of(require_pixels(reply), [png()]).pixels.sum() == 0


def test_neither_side_can_cut_the_page_away() -> None:
    file, page = packets.new_page()
    with pytest.raises(PermissionError):
        os.ftruncate(file, 1)
    with pytest.raises(PermissionError):
        os.ftruncate(file, 2 * packets.PAGE_BYTES)
    os.close(file)
    page.close()


def test_a_packet_larger_than_the_page_comes_in_a_file() -> None:
    sent = in_page({}, bytes(packets.PAGE_BYTES))
    assert sent.file is not None
    os.close(sent.file)


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": [1, 1, 37, 52]},
        {"shape": [1, 1, 0, 51]},
        {"shape": [1, 1, -37, -51]},
        {"shape": [1 << 40, 1 << 40, 1, 1]},
        {"shape": [37 * 51]},
        {"dtype": "object"},
        {"dtype": "uint16"},
        {"affine": [1.0] * 15},
        {"unit": "furlong"},
        {"kind": "pickle"},
        {"more": 1},
        {"source": {"format": "png", "dtype": "O", "orientation": 1}},
        {"source": {"format": "png", "dtype": "uint8", "orientation": 9}},
        {"source": {"format": "nifti", "header": "00"}},
        {"source": {"format": "dicom", "origins": [[0, 1]], "frames": [], "padding": True}},
        {"frame_of_reference": "x" * 70000},
    ],
)
@WAYS
def test_forged_descriptions_are_breaches(way: Callable[..., Packet], changes: dict[str, Any]) -> None:
    with pytest.raises(Breach):
        judge(way(described(**changes), PIXELS))


def test_forged_packets_are_breaches(tmp_path: Path) -> None:
    def file_of(content: bytes) -> int:
        file = os.memfd_create("test", os.MFD_ALLOW_SEALING)
        os.write(file, content)
        return file

    whole = PIXELS + json.dumps(described()).encode()
    place = packets.PLACE.pack
    message = place(len(PIXELS), len(whole))
    with pytest.raises(Breach):
        judge(Packet(message, file_of(whole), PAGE))  # not sealed: it could be cut away while it is mapped
    (tmp_path / "file").write_bytes(whole)
    with pytest.raises(Breach):
        judge(Packet(message, os.open(tmp_path / "file", os.O_RDONLY), PAGE))
    with pytest.raises(Breach):
        judge(Packet(message, os.open("/dev/zero", os.O_RDONLY), PAGE))
    size = len(whole)
    places = [(0, size), (1 << 63, size), (size, size), (size, 0), (len(PIXELS), size - 1), (len(PIXELS), 1 << 63)]
    for wrong in (b"", b"x", *(place(begin, end) for begin, end in places)):
        for way in (packet, in_page):
            with pytest.raises(Breach):
                judge(way(described(), PIXELS)._replace(message=wrong))
    with pytest.raises(Breach):
        judge(packet(described(shape=[1, 1, 1, 2 << 20]), bytes(2 << 20)))  # more than it may


class Evil:
    def __reduce__(self) -> Any:
        return os.mkdir, ("evil",)


def test_a_pickle_is_never_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for way in (packet, in_page):
        sent = way({}, PIXELS, pickle.dumps(Evil()))
        with pytest.raises(Breach):
            judge(sent._replace(message=packets.PLACE.pack(len(PIXELS), len(PIXELS) + len(pickle.dumps(Evil())))))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("origins", [[[0, 100], [0, 100]], [[1, 100]], [[0, 100], [2, 100]]])
def test_headers_are_only_those_that_came(origins: list[list[int]]) -> None:
    source = {"format": "dicom", "origins": origins, "frames": [], "padding": False}
    reply = judge(packet(described(source=source), PIXELS))
    with pytest.raises(DecoderFault):
        image_of(reply, [sample("CT_small.dcm").read_bytes()])


def test_frames_are_only_those_of_files_that_came() -> None:
    source = {"format": "dicom", "origins": [[0, 100]], "frames": [[0, 0], [1, 0]], "padding": False}
    reply = judge(packet(described(source=source), PIXELS))
    with pytest.raises(DecoderFault, match="frames"):
        image_of(reply, [sample("CT_small.dcm").read_bytes()])


def test_an_error_that_no_decoder_has_is_a_refusal() -> None:
    with pytest.raises(InputError):
        require_pixels(judge(packet({"kind": "refused", "code": "invented", "detail": "x"})))
    with pytest.raises(Breach):
        judge(packet({"kind": "refused", "code": "invented", "detail": "x" * 5000}))


def test_a_fault_names_its_place_and_nothing_else() -> None:
    header, blobs = decoder.answer([png()], AS_IMAGE, None)  # no limits: a fault of ours
    assert header["kind"] == "fault" and not blobs
    with recorded_log() as log, pytest.raises(DecoderFault):
        require_pixels(judge(packet(header)))
    (line,) = [json.loads(line) for line in log.getvalue().splitlines()]
    assert line["error"] == "AttributeError" and line["at"].startswith("__init__.py:")
    for text in ("Doe^Jane", "a b", "x" * 100):
        with pytest.raises(Breach):
            judge(packet({"kind": "fault", "error": text, "at": "x.py:1"}))
        with pytest.raises(Breach):
            judge(packet({"kind": "fault", "error": "ValueError", "at": text}))
