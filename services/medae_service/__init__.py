"""The HTTP door of medae: BentoML runs the processes, our own ASGI app answers `/` and `/v1`.

launch.py      `medae serve`: checks the call, then becomes the supervisor of the workers
service.py     the BentoML service, one instance a worker
security.py    who may come in: Host, Origin, token, size; answers' security headers
app.py         routes, and the way of a request through them
uploads.py     multipart bodies, streamed and counted
decoding.py    uploads -> image, in a pool of child processes
decoder.py     one such child, confined
decoded.py     what a child sends, judged as if an attacker had sent it
admission.py   a bounded number computes, a bounded number waits; deadlines, clients who leave
answering.py   image -> prediction -> answer, on a worker thread
items.py       many images in one request, each with its own status
models.py      the models of this process, their weights within a memory budget
engine.py      the device: tiles of all requests in turn, in batches on a GPU; readiness
problems.py    errors as application/problem+json
logs.py        JSON lines that hold nothing about a patient
description.py /openapi.json and the page at /
settings.py    all that service.yaml can say
"""
