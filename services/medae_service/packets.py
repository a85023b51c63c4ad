"""Packets between the service and a decoder: blobs, then a header in JSON.

A packet lies in the page that both sides map, if it fits: a tile then costs one message in each direction. A larger one
comes in an anonymous file (memfd) of its own, sealed, which the receiver maps. Nothing of either has a name on a disk,
and a crash leaves nothing. The message says where the header begins and ends.
"""

import fcntl
import json
import mmap
import os
import socket
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

READY = b"ready"
PLACE = struct.Struct(">QQ")
"""Where the header begins, and where it ends."""
PLACE_ERROR = struct.error
PAGE_BYTES = 1 << 22
SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
"""Of a packet's own file: nobody changes it any more, so that a reader may map it."""


class Packet(NamedTuple):
    """What came, unread: its message is empty where the other side is gone."""

    message: bytes
    file: int | None
    """The receiver's, who closes it; None: the packet lies in the page."""
    page: mmap.mmap


def new_page() -> tuple[int, mmap.mmap]:
    """The descriptor of a page, for the other side, and the page. Neither side can change its size."""
    file = os.memfd_create("medae", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(file, PAGE_BYTES)
    fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    return file, mmap.mmap(file, PAGE_BYTES)


def send(channel: socket.socket, page: mmap.mmap, header: dict[str, Any], blobs: Sequence[Any] = ()) -> None:
    """One packet; what it held in the page before is gone."""
    parts = [memoryview(blob).cast("B") for blob in (*blobs, json.dumps(header).encode())]
    size = sum(map(len, parts))
    place = PLACE.pack(size - len(parts[-1]), size)
    if size > len(page):
        file = sealed(parts)
        try:
            socket.send_fds(channel, [place], [file])
        finally:
            os.close(file)
        return
    page.seek(0)
    for part in parts:
        page.write(part)
    channel.send(place)


def sealed(parts: Sequence[memoryview]) -> int:
    """The descriptor of a file with all the parts, which nobody changes any more."""
    file = os.memfd_create("medae", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        for part in parts:
            rest = part
            while rest:  # the kernel takes 2 GB at once at most
                rest = rest[os.write(file, rest) :]
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, SEALS)
    except BaseException:
        os.close(file)
        raise
    return file


def receive(channel: socket.socket, page: mmap.mmap) -> Packet:
    """The next packet."""
    try:
        message, files, _, _ = socket.recv_fds(channel, 64, 1, socket.MSG_CMSG_CLOEXEC)
    except ConnectionError:
        return Packet(b"", None, page)
    return Packet(message, files[0] if files else None, page)
