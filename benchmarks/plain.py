"""What one writes without medae: FastAPI, uvicorn, Pillow and torch. Stands beside medae's service in a benchmark.

    uvicorn benchmarks.plain:app --workers 2        MEDAE_BENCHMARK_PACKAGE names the package

The network and its weights are those of the package and torch has one thread a worker, so that only the service
differs. No limits, no tokens, no child processes; a picture comes in, a PNG of labels goes out.
"""

import os
from io import BytesIO

import numpy as np
import torch
from fastapi import FastAPI, UploadFile
from fastapi.responses import Response
from PIL import Image as Picture
from pydantic import TypeAdapter

from benchmarks.servers import PACKAGE_VARIABLE
from medae.networks import NetworkConfig
from medae.package import load

torch.set_num_threads(1)


def network() -> torch.nn.Module:
    package = load(os.environ[PACKAGE_VARIABLE])
    settings = TypeAdapter(NetworkConfig).validate_python(package.card.network)
    built = settings.build(package.card.channels_in, package.card.channels_out)
    built.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in package.weights.items()})
    return built.eval()


app = FastAPI()
model = network()


@app.get("/livez")
def livez() -> str:
    return "ok"


def answer(data: bytes) -> Response:
    picture = np.array(Picture.open(BytesIO(data)).convert("RGB"))
    x = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255
    with torch.inference_mode():
        labels = model(x).argmax(1)[0].byte().numpy()
    target = BytesIO()
    Picture.fromarray(labels).save(target, "PNG")
    return Response(target.getvalue(), media_type="image/png")


@app.post("/segment")
def segment(file: UploadFile) -> Response:
    """On FastAPI's threads, of which there are 40."""
    return answer(file.file.read())


@app.post("/segment_inline")
async def segment_inline(file: UploadFile) -> Response:
    """On the event loop: one at a time, and nothing else meanwhile."""
    return answer(await file.read())
