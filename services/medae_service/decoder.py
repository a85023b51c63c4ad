"""One decoder: a child process that turns files into pixels.

A picture is a program for a decoder written in C. So it runs in a process of its own that has nothing: no socket of the
service, no torch, no file that was not there before it (it may write none), little time and memory. The kernel ends it
with its parent, however that dies, and it leaves neither messages nor a core file.

What comes back from here is judged in decoded.py as if an attacker had sent it.
"""

import ctypes
import json
import math
import mmap
import os
import resource
import signal
import socket
import sys
import traceback
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from medae_service import packets

_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38  # linux/prctl.h
_OPEN_FILES = 64
_OUT_OF_MEMORY = 3


def main(order: dict[str, Any]) -> None:
    """The child: confined first, then ready; answers until its parent closes the channel."""
    _confine(order["parent"], order["memory"])
    from medae.io import DEFAULT_LIMITS
    from medae.io.dicom_decoder import decode_here

    decode_here()  # this process is a child already
    limits = DEFAULT_LIMITS.model_validate(order["limits"])
    _warm_up()
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    page = mmap.mmap(order["page"], packets.PAGE_BYTES)
    os.close(order["page"])
    with socket.socket(fileno=sys.stdin.fileno()) as channel:
        channel.send(packets.READY)
        while (packet := packets.receive(channel, page)).message:
            _grant_seconds(order["seconds"])
            header, blobs = answer(*_question(packet), limits)
            packets.send(channel, page, header, blobs)
            del header, blobs


def _confine(parent: int, memory: int) -> None:
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if os.getppid() != parent:  # it died before the first call
        raise SystemExit("the parent is gone")
    # whoever stops the service tells all its processes; requests are finished first, and need us
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    # one byte, not none: the kernel hands a core to a collecting program even at a limit of 0, but not at 1 (core(5))
    resource.setrlimit(resource.RLIMIT_CORE, (1, 1))
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_FSIZE, (memory, memory))  # packets' files count, too
    resource.setrlimit(resource.RLIMIT_NOFILE, (_OPEN_FILES, _OPEN_FILES))


def _grant_seconds(seconds: float) -> None:
    """Of processor time, for the next image: should the parent's clock ever fail."""
    used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(used + seconds) + 1, hard))


def _warm_up() -> None:
    """Imports what the first request would wait for."""
    import imagecodecs
    import nibabel.nifti2
    import tifffile

    import medae.io.dicom
    import medae.io.nifti
    import medae.io.raster

    for codec in ("png_decode", "deflate_encode", "deflate_decode", "jpeg8_decode", "gzip_decode"):
        getattr(imagecodecs, codec)
    assert tifffile and nibabel.nifti2 and medae.io.dicom and medae.io.nifti and medae.io.raster


def _question(packet: packets.Packet) -> tuple[list[Path | bytes], dict[str, Any]]:
    """The files of a request, and how they are read: as labels or not, which series, with gaps or without."""
    begin, end = packets.PLACE.unpack(packet.message)
    with nullcontext(packet.page) if packet.file is None else os.fdopen(packet.file, "rb") as stream:
        stream.seek(begin)
        header = json.loads(stream.read(end - begin))
        stream.seek(0)
        files = [Path(at) if isinstance(at, str) else stream.read(at) for at in header.pop("files")]
    return files, header


def answer(files: Sequence[Path | bytes], how: dict[str, Any], limits: Any) -> tuple[dict[str, Any], list[Any]]:
    """Header and blobs of the answer: the image, why it was refused, or which fault of ours it met."""
    from medae.errors import InputError
    from medae.io import read_image, read_labels

    try:
        source = files[0] if len(files) == 1 else files
        if how["labels"]:
            return _described(read_labels(source, limits=limits))
        return _described(read_image(source, limits=limits, series=how["series"], regular_grid=how["regular_grid"]))
    except InputError as error:
        return {"kind": "refused", "code": error.code, "detail": str(error)}, []
    except MemoryError:
        os._exit(_OUT_OF_MEMORY)  # no more is known about what lies in memory
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(last.filename).name}:{last.lineno}"
        return {"kind": "fault", "error": type(error).__name__, "at": place}, []


def _described(image: Any) -> tuple[dict[str, Any], list[Any]]:
    """The image without its pixels, as plain data; and its pixels."""
    import numpy as np

    from medae.io.dicom import DicomSource
    from medae.io.nifti import NiftiSource
    from medae.io.raster import RasterSource
    from medae.io.volume import VolumeSource

    blobs = [np.ascontiguousarray(image.pixels)]
    source = image.source
    said: dict[str, Any] = {"format": source.format}
    if isinstance(source, RasterSource):
        said |= {"dtype": source.dtype, "orientation": source.orientation}
    elif isinstance(source, NiftiSource):
        said["header"] = source.header.hex()
    elif isinstance(source, VolumeSource):
        said["dtype"] = source.dtype
    elif isinstance(source, DicomSource):
        said |= {"origins": source.origins, "frames": source.frames, "padding": source.padding is not None}
        if source.padding is not None:
            blobs.append(np.ascontiguousarray(source.padding))
    geometry = image.geometry
    header = {
        "kind": "image",
        "shape": image.pixels.shape,
        "dtype": image.pixels.dtype.name,
        "volumes": image.volumes,
        "affine": geometry.affine.ravel().tolist(),
        "unit": geometry.unit,
        "frame_of_reference": geometry.frame_of_reference,
        "source": said,
    }
    return header, blobs


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
