"""The HTTP door of medae: BentoML runs the processes, our own ASGI app answers `/` and `/v1`.

launch.py      `medae serve`: checks the call, then becomes the supervisor of the workers
service.py     the BentoML service, one instance a worker
security.py    who may come in: Host, Origin, token, size; answers' security headers
app.py         routes, and one queue in front of the device
uploads.py     multipart bodies, streamed and counted
answering.py   files -> image -> prediction -> answer, on a worker thread
models.py      the models of this process
problems.py    errors as application/problem+json
logs.py        JSON lines that hold nothing about a patient
description.py /openapi.json and the page at /
settings.py    all that service.yaml can say
"""
