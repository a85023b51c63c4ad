"""BentoML's own endpoints, for `bentoml.SyncHTTPClient` and whoever has arrays instead of files.

    client.segment_bytes(Path("x.png").read_bytes())     # a file, answered as POST /v1/segment answers it
    client.segment_bytes(npy)                            # an array as .npy, answered as .npy
    client.segment_list(pixels, dtype="uint8")           # an array as nested lists

Each is another spelling of /v1: the same app answers, with the same limits, queue and pixels. BentoML reads bodies
whole, fetches URLs for file fields and unpickles on request, so bodies are counted and their kind is checked before it
sees them, and no endpoint has a field of a file type.
"""

import asyncio
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from tokenize import TokenError
from typing import Any, ClassVar, Dict, List, Optional  # noqa: UP035  # BentoML looks into these
from urllib.parse import urlencode
from zipfile import ZipFile

import bentoml
import numpy as np
from numpy.typing import NDArray
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from medae.errors import LimitExceeded, MedaeError, UnfitImage, UnreadableImage, UnsupportedImage
from medae.image import Geometry, Image
from medae.io import encode_image, read_image
from medae_service.answering import SUMMARY, ZIP
from medae_service.models import Endpoint
from medae_service.problems import Refusal, problem, refuse
from medae_service.settings import WorkerSettings
from medae_service.uploads import FIELD

NPY = b"\x93NUMPY"
NATIVE_BYTES = 256 << 20
"""Of one body: it is held in memory, a few times. /v1 takes larger ones."""
LIST_BYTES = 32 << 20
"""Of a body of nested lists, which needs ten times its size when it is parsed."""
NPY_HEADER = 4096
RAW_KINDS = frozenset({"", "text/plain", "application/octet-stream"})  # the first and second are BentoML's clients'
SCOPES: dict[str, Endpoint] = {
    f"/native/{task}_{kind}": task for task in ("segment", "restore", "score") for kind in ("bytes", "list")
}
"""Path -> the scope that a token needs for it."""


class NativeEndpoints:
    """What the service's class inherits."""

    app: ClassVar[Starlette]
    """Of /v1."""

    @bentoml.api(route="/native/segment_bytes")  # type: ignore[untyped-decorator]  # BentoML is not typed
    async def segment_bytes(self, image: bytes, /, ctx: bentoml.Context) -> bytes:
        """Labels for every pixel of a file, in its own format, or of an array (.npy), as .npy."""
        answer: bytes = await self._bytes("segment", image, ctx)
        return answer

    @bentoml.api(route="/native/restore_bytes")  # type: ignore[untyped-decorator]
    async def restore_bytes(self, image: bytes, /, ctx: bentoml.Context) -> bytes:
        """A file without its noise, in its own format, or an array (.npy), as .npy."""
        answer: bytes = await self._bytes("restore", image, ctx)
        return answer

    @bentoml.api(route="/native/score_bytes")  # type: ignore[untyped-decorator]
    async def score_bytes(self, image: bytes, /, ctx: bentoml.Context) -> bytes:
        """A zip of summary and map for a file; the map as .npy for an array (.npy)."""
        answer: bytes = await self._bytes("score", image, ctx)
        return answer

    @bentoml.api(route="/native/segment_list")  # type: ignore[untyped-decorator]
    async def segment_list(
        self,
        pixels: List[Any],  # noqa: UP006
        ctx: bentoml.Context,
        dtype: str = "uint8",
        model: Optional[str] = None,  # noqa: UP045
        threshold: Optional[float] = None,  # noqa: UP045
    ) -> Dict[str, Any]:  # noqa: UP006
        """{"pixels": labels, "dtype", "summary"}; pixels as (rows, columns), (rows, columns, channels) or
        (channels, slices, rows, columns)."""
        answer: dict[str, Any] = await self._list(
            "segment", pixels, dtype, {"model": model, "threshold": threshold}, ctx
        )
        return answer

    @bentoml.api(route="/native/restore_list")  # type: ignore[untyped-decorator]
    async def restore_list(
        self,
        pixels: List[Any],  # noqa: UP006
        ctx: bentoml.Context,
        dtype: str = "uint8",
        model: Optional[str] = None,  # noqa: UP045
    ) -> Dict[str, Any]:  # noqa: UP006
        """{"pixels": without noise, "dtype", "summary"}; axes as for segment_list."""
        answer: dict[str, Any] = await self._list("restore", pixels, dtype, {"model": model}, ctx)
        return answer

    @bentoml.api(route="/native/score_list")  # type: ignore[untyped-decorator]
    async def score_list(
        self,
        pixels: List[Any],  # noqa: UP006
        ctx: bentoml.Context,
        dtype: str = "uint8",
        model: Optional[str] = None,  # noqa: UP045
        threshold: Optional[float] = None,  # noqa: UP045
    ) -> Dict[str, Any]:  # noqa: UP006
        """{"pixels": the map, "dtype", "summary"}; axes as for segment_list."""
        answer: dict[str, Any] = await self._list("score", pixels, dtype, {"model": model, "threshold": threshold}, ctx)
        return answer

    async def _bytes(self, task: Endpoint, data: bytes, ctx: bentoml.Context) -> Any:
        if not data.startswith(NPY):
            reply = await _ask(self.app, ctx.request, task, data, query=ctx.request.query_params)
            return _passed(ctx, reply.response())
        try:
            array = from_npy(data)
            reply = await _ask(self.app, ctx.request, task, await _encoded(array), accept=ZIP)
            if reply.status != 200:
                return _passed(ctx, reply.response())
            pixels, _ = await asyncio.to_thread(_unpacked, reply.body, array.ndim)
        except MedaeError as error:
            return _passed(ctx, _refused(ctx.request, error))
        return _passed(ctx, Response(to_npy(pixels), headers=reply.told, media_type="application/octet-stream"))

    async def _list(
        self, task: Endpoint, pixels: list[Any], dtype: str, query: Mapping[str, Any], ctx: bentoml.Context
    ) -> Any:
        try:
            array = await asyncio.to_thread(from_list, pixels, dtype)
            reply = await _ask(self.app, ctx.request, task, await _encoded(array), accept=ZIP, query=query)
            if reply.status != 200:
                return _passed(ctx, reply.response())
            made, summary = await asyncio.to_thread(_unpacked, reply.body, array.ndim)
        except MedaeError as error:
            return _passed(ctx, _refused(ctx.request, error))
        return {"pixels": made.tolist(), "dtype": str(made.dtype), "summary": summary}


def _passed(ctx: bentoml.Context, response: Response) -> Response:
    """BentoML passes a Response on, whatever an endpoint declares, but with the status that its context has."""
    ctx.response.status_code = response.status_code
    return response


def _refused(request: Any, error: MedaeError) -> Response:
    return problem(request.scope["medae.request"], error.status, error.code, str(error))


class NativeGuard:
    """Before BentoML reads a body: its kind, its size, the time it takes."""

    def __init__(self, app: ASGIApp, settings: WorkerSettings) -> None:
        self.app = app
        self._most = min(NATIVE_BYTES, settings.upload_bytes)
        self._seconds = settings.upload_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] not in SCOPES or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        try:
            body = await self._body(scope, receive)
        except MedaeError as error:
            await problem(scope["medae.request"], error.status, error.code, str(error))(scope, receive, send)
        except Refusal as error:
            await refuse(scope["medae.request"], error)(scope, receive, send)
        else:
            await self.app(scope, _replayed(body, receive), send)

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        is_list = scope["path"].endswith("_list")
        kind = Headers(scope=scope).get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json" if is_list else kind not in RAW_KINDS:
            wanted = "application/json" if is_list else "application/octet-stream"
            raise Refusal(415, "wrong-media-type", f"this endpoint takes a body of {wanted}; files go to /v1")
        try:
            async with asyncio.timeout(self._seconds):
                body = await _counted(receive, min(self._most, LIST_BYTES) if is_list else self._most)
        except TimeoutError:
            raise Refusal(408, "upload-timeout", f"the body did not come within {self._seconds:g} s") from None
        if not body:  # BentoML would take it for an empty JSON object
            raise UnreadableImage("the body is empty; an image was expected")
        return body


async def _counted(receive: Receive, most: int) -> bytes:
    body, more = bytearray(), True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > most:
            raise LimitExceeded(f"the body is larger than {most} bytes, the limit here; send a file to /v1 instead")
    return bytes(body)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """The body at once, then whatever comes next: that the client leaves."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def next_message() -> Message:
        return messages.pop() if messages else await receive()

    return next_message


@dataclass
class _Reply:
    """What /v1 answered."""

    status: int = 500
    headers: Headers = field(default_factory=Headers)
    body: bytes = b""

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = Headers(raw=[(name.lower(), value) for name, value in message["headers"]])
        else:
            self.body += message.get("body", b"")

    @property
    def told(self) -> dict[str, str]:
        """The headers that are the answer's own."""
        return {name: value for name, value in self.headers.items() if name.startswith("x-medae-")}

    def response(self) -> Response:
        kept = {name: value for name, value in self.headers.items() if name != "content-length"}
        return Response(self.body, self.status, kept)


async def _ask(
    app: ASGIApp, request: Any, task: Endpoint, file: bytes, *, accept: str = "*/*", query: Mapping[str, Any] = {}
) -> _Reply:
    """The same question to /v1, under the id of the request that BentoML has."""
    boundary = str(request.scope["medae.request"])
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="{FIELD}"; filename="image"\r\n\r\n'
    body = head.encode() + file + f"\r\n--{boundary}--\r\n".encode()
    told = {"content-type": f"multipart/form-data; boundary={boundary}", "accept": accept}
    path = f"/v1/{task}"
    asked = urlencode({name: value for name, value in query.items() if value is not None})
    scope = {
        **{name: request.scope[name] for name in ("type", "asgi", "http_version", "scheme", "server", "client")},
        **{name: value for name, value in request.scope.items() if name.startswith("medae.")},
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": asked.encode(),
        "headers": [(name.encode(), value.encode()) for name, value in told.items()],
    }
    reply = _Reply()
    await app(scope, _replayed(body, request.receive), reply.send)
    return reply


def from_npy(data: bytes) -> NDArray[Any]:
    """An array of numbers. Raises UnreadableImage; nothing is allocated by what the header claims."""
    stream = BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(stream, max_header_size=NPY_HEADER)
        if dtype.hasobject or dtype.kind not in "buif":
            raise UnsupportedImage("the array holds no plain numbers; send whole or real ones")
        pixels = np.frombuffer(data, dtype, offset=stream.tell())
        if min(shape, default=0) < 0 or math.prod(shape) != pixels.size:
            raise ValueError
        return pixels.reshape(shape, order="F" if fortran else "C").astype(dtype.newbyteorder("="), copy=False)
    except (ValueError, SyntaxError, TypeError, OverflowError, TokenError, RecursionError, MemoryError):
        raise UnreadableImage("the .npy array is damaged: its header and its data do not fit") from None


def to_npy(pixels: NDArray[Any]) -> bytes:
    target = BytesIO()
    np.lib.format.write_array(target, pixels, allow_pickle=False)
    return target.getvalue()


def from_list(pixels: Sequence[Any], dtype: str) -> NDArray[Any]:
    """Raises UnreadableImage for lists that are no array of such numbers, UnsupportedImage for an unknown dtype."""
    if dtype not in ("bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64"):
        raise UnsupportedImage("dtype is bool, uint8, int8, uint16, int16, uint32, int32, float32 or float64")
    try:
        found = np.asarray(pixels)
        if found.dtype.kind not in "buif":
            raise ValueError
        array = found.astype(dtype)
    except (ValueError, TypeError, OverflowError):
        raise UnreadableImage("pixels are lists of lists of numbers, all of one length") from None
    if array.dtype.kind != "f" and not np.array_equal(array, found):
        raise UnreadableImage(f"there are pixels that {dtype} does not hold")
    return array


async def _encoded(array: NDArray[Any]) -> bytes:
    return await asyncio.to_thread(lambda: encode_image(as_image(array)))


def as_image(array: NDArray[Any]) -> Image:
    """(rows, columns), (rows, columns, channels) or (channels, slices, rows, columns); a picture of unknown size.

    Raises UnfitImage for other axes, GeometryError for none of a length.
    """
    if array.ndim in (2, 3):
        return Image.from_picture(array)
    if array.ndim != 4:
        raise UnfitImage(
            f"an array has 2 axes (rows, columns), 3 (rows, columns, channels) or 4 (channels, slices, rows, columns); "
            f"this one has {array.ndim}"
        )
    slices, rows, columns = array.shape[1:]
    return Image(array, Geometry.picture(rows, columns, slices=slices))


def _unpacked(archive: bytes, axes: int) -> tuple[NDArray[Any], dict[str, Any]]:
    """The pixels of an answer, with the axes that the question had, and its summary."""
    with ZipFile(BytesIO(archive)) as files:
        summary: dict[str, Any] = json.loads(files.read(SUMMARY))
        pixels = read_image(files.read(summary["files"][0]["name"])).pixels
    if axes == 4:
        return pixels, summary
    picture = np.moveaxis(pixels[:, 0], 0, -1)
    return (picture[..., 0] if picture.shape[-1] == 1 else picture), summary
