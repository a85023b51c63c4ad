"""Decoding in a child process: the same pixels, and nothing that the data does to the child reaches its parent."""

import os
import signal
import subprocess
import sys
import time
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.encaps import generate_frames
from pydicom.pixels.utils import as_pixel_options

from medae.errors import UnreadableImage
from medae.io.dicom_decoder import Decoder
from medae.io.dicom_frames import read_slices
from medae.io.dicom_pixels import stored_frames
from medae.io.guard import DEFAULT_LIMITS
from tests.dicom_made import sample

NAMES = ["MR_small_RLE", "MR_small_jp2klossless", "SC_rgb_jpeg_gdcm", "SC_rgb_jls_lossy_line", "SC_rgb_dcmtk_+eb+cy+np"]


@pytest.fixture
def decoder():
    decoder = Decoder()
    yield decoder
    decoder.close()


def question(file) -> tuple[bytes, dict[str, Any]]:
    """The first frame of a file, and what the decoder is told about it."""
    dataset = dcmread(file)
    options = {**as_pixel_options(dataset), "number_of_frames": 1}
    options["transfer_syntax_uid"] = str(dataset.file_meta.TransferSyntaxUID)
    return next(generate_frames(dataset.PixelData, number_of_frames=int(dataset.get("NumberOfFrames", 1)))), options


def decoded(decoder: Decoder, file) -> np.ndarray:
    return decoder.decode(*question(file))


def child_of(decoder: Decoder) -> int:
    assert decoder._child is not None
    return decoder._child.pid


@pytest.mark.parametrize("name", NAMES)
def test_the_same_pixels_as_here(decoder, name):
    path = sample(f"{name}.dcm")
    np.testing.assert_array_equal(decoded(decoder, path), dcmread(path).pixel_array)


@pytest.mark.parametrize("name", ["examples_ybr_color", "SC_rgb_rle_2frame", "SC_rgb_rle_16bit_2frame"])
def test_frames_come_one_by_one_and_only_those_wanted(name):
    slices = read_slices(sample(f"{name}.dcm"), DEFAULT_LIMITS)
    expected = dcmread(sample(f"{name}.dcm")).pixel_array
    wanted = [1, 0]
    for frame, pixels in zip(wanted, stored_frames([slices[frame] for frame in wanted]), strict=True):
        np.testing.assert_array_equal(np.moveaxis(pixels, 0, -1), expected[frame])


def test_one_child_serves_many(decoder):
    decoded(decoder, sample("MR_small_RLE.dcm"))
    first = child_of(decoder)
    decoded(decoder, sample("SC_rgb_rle.dcm"))
    assert child_of(decoder) == first


def test_what_is_not_readable_is_refused_and_the_next_is_read(decoder):
    _, options = question(sample("SC_rgb_jls_lossy_line.dcm"))
    with pytest.raises(UnreadableImage, match="damaged, or compressed"):
        decoder.decode(b"no JPEG-LS at all", options)
    decoded(decoder, sample("MR_small_RLE.dcm"))


def test_a_killed_child_is_replaced(decoder):
    decoded(decoder, sample("MR_small_RLE.dcm"))
    os.kill(child_of(decoder), signal.SIGKILL)
    time.sleep(0.1)
    decoded(decoder, sample("MR_small_RLE.dcm"))


def test_a_picture_that_never_ends_is_given_up():
    decoder = Decoder(seconds=60)
    try:
        decoded(decoder, sample("MR_small_RLE.dcm"))
        os.kill(child_of(decoder), signal.SIGSTOP)
        decoder._seconds = 3
        with pytest.raises(UnreadableImage, match="crashed on the DICOM pixel data, or took more than 3 s"):
            decoded(decoder, sample("MR_small_RLE.dcm"))
        decoder._seconds = 60
        decoded(decoder, sample("MR_small_RLE.dcm"))
    finally:
        decoder.close()


def test_who_is_interrupted_spoils_nothing_for_the_next(decoder, monkeypatch):
    decoded(decoder, sample("SC_rgb_rle.dcm"))

    def interrupted(stream):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("medae.io.dicom_decoder._receive", interrupted)
        with pytest.raises(KeyboardInterrupt):
            decoded(decoder, sample("SC_rgb_rle.dcm"))
    assert decoded(decoder, sample("MR_small_RLE.dcm")).shape == (64, 64)


def test_a_stream_that_crashes_a_decoder_does_not_crash_us(decoder):
    """JPEG lossless of "127 bits": gdcm has died of such."""
    frame, options = question(sample("SC_rgb_jpeg_gdcm.dcm"))
    data = bytearray(frame)
    at = data.index(b"\xff\xc3\x00\x11") + 4
    data[at] = 127
    with pytest.raises(UnreadableImage):
        decoder.decode(bytes(data), options)
    decoded(decoder, sample("SC_rgb_jpeg_gdcm.dcm"))


def test_a_forked_process_gets_a_child_of_its_own(decoder):
    path = sample("MR_small_RLE.dcm")
    decoded(decoder, path)
    pid = os.fork()
    if pid == 0:
        pixels = decoded(decoder, path)
        os._exit(0 if pixels.shape == (64, 64) and decoder._of_parents[0].pid != child_of(decoder) else 1)
    decoded(decoder, path)
    assert os.waitpid(pid, 0)[1] == 0


@pytest.mark.parametrize("how", ["pass", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"])
def test_no_child_is_left_behind(how):
    script = f"""
from medae.io.dicom_decoder import Decoder
decoder = Decoder()
decoder.decode(*{question(sample("MR_small_RLE.dcm"))!r})
print(decoder._child.pid, flush=True)
{how}
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60)
    pid = int(run.stdout)
    assert not run.stderr
    deadline = time.monotonic() + 10
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(pid)


def is_running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
