"""What one writes without medae: FastAPI, uvicorn, Pillow and torch. Stands beside medae's service in a benchmark.

    uvicorn benchmarks.plain:app --workers 2        MEDAE_BENCHMARK_PACKAGE names the package

The network and its weights are those of the package and torch has one thread a worker, so that only the service
differs. No limits, no tokens, no child processes; a picture comes in, a PNG of labels goes out.
"""

import os

from fastapi import FastAPI, UploadFile
from fastapi.responses import Response

from benchmarks.by_hand import answer, network
from benchmarks.servers import PACKAGE_VARIABLE
from medae.package import load

app = FastAPI()
model = network(load(os.environ[PACKAGE_VARIABLE]))


@app.get("/livez")
def livez() -> str:
    return "ok"


@app.post("/segment")
def segment(file: UploadFile) -> Response:
    """On FastAPI's threads, of which there are 40."""
    return Response(answer(model, file.file.read()), media_type="image/png")


@app.post("/segment_inline")
async def segment_inline(file: UploadFile) -> Response:
    """On the event loop: one at a time, and nothing else meanwhile."""
    return Response(answer(model, await file.read()), media_type="image/png")
