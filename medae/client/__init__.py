"""The HTTP service from Python: `Client` and, for asyncio, `AsyncClient`. Needs httpx, and neither torch nor a GPU.

    with Client("http://localhost:3000", token) as client:
        client.segment("scan.nii.gz").save(Path("answers"))

What is sent are the contents of files, never their names. What the service refuses is raised as the error that Python
would raise for the same image or call, with the service's code; see medae.errors.

form.py      an image, a file or a series -> what is sent
question.py  where it is sent, with which parameters
patience.py  when to ask again, and how long to wait
answer.py    what came -> an answer or an error
calls.py     Client and AsyncClient
"""

from medae.client.answer import Answer, Outcome
from medae.client.calls import AsyncClient, Client

__all__ = ["Answer", "AsyncClient", "Client", "Outcome"]
