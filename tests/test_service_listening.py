"""Workers that share a socket: who takes a connection, and that nobody is held up."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from medae_service.beside import Beside, Deadline
from medae_service.listening import MUCH, Board, Listener


def boards(folder: Path, workers: int) -> list[Board]:
    path = Board.make(folder / "board", workers)
    return [Board(path, index) for index in range(workers)]


def test_workers_see_who_has_the_least(tmp_path: Path) -> None:
    first, second, _absent = boards(tmp_path, 3)
    first.post(5)
    assert first.more() == 0, "nobody else is there yet"
    second.post(2)
    assert (first.more(), second.more()) == (3, 0)
    assert (tmp_path / "board").stat().st_mode & 0o777 == 0o600


def test_one_worker_needs_no_board() -> None:
    board = Board(None, 0)
    board.post(7)
    assert board.more() == 0


async def _answer(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


async def _headers(app: Any) -> list[tuple[bytes, bytes]]:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    await app({"type": "http", "path": "/"}, None, send)
    return list(sent[0]["headers"])


@pytest.mark.parametrize("busier", [0, MUCH - 1, MUCH, 20])
def test_the_busier_worker_asks_its_clients_to_connect_again(tmp_path: Path, busier: int) -> None:
    ours, other = boards(tmp_path, 2)
    other.post(1)
    listener = Listener(_answer, ours)
    listener._requests = busier  # and the one that is answered
    asked = (b"connection", b"close") in asyncio.run(_headers(listener))
    assert asked == (busier >= MUCH)
    assert ours.more() == max(0, busier - 1), "its own request is not counted any more"


class _Loop:
    """What a listener does with its loop; time is the test's."""

    def __init__(self) -> None:
        self.accepted = 0
        self.most: list[int] = []
        self.reading = True
        self.later: list[tuple[float, Any, tuple[Any, ...]]] = []

    def _accept_connection(self, factory: Any, listening: Any, tls: Any, server: Any, most: int, *rest: Any) -> None:
        self.accepted += 1
        self.most.append(most)

    def _remove_reader(self, file: int) -> None:
        self.reading = False

    def _add_reader(self, file: int, callback: Any, *rest: Any) -> None:
        self.reading = True

    def call_later(self, seconds: float, callback: Any, *rest: Any) -> None:
        self.later.append((seconds, callback, rest))


class _Socket:
    def __init__(self) -> None:
        self.file = 5

    def fileno(self) -> int:
        return self.file


def taking(folder: Path) -> tuple[Any, Board, Board]:
    ours, other = boards(folder, 2)
    ours.post(0)
    other.post(0)
    loop = _Loop()
    Listener(_answer, ours)._take_turns(loop)
    return loop, ours, other


def test_connections_are_taken_one_at_a_time_and_left_to_the_idle(tmp_path: Path) -> None:
    loop, ours, _ = taking(tmp_path)
    waiting = (None, _Socket(), None, None, 2048)
    loop._accept_connection(*waiting)
    assert (loop.accepted, loop.most) == (1, [1])
    assert ours.more() == 1, "what was taken counts before its request comes"
    loop._accept_connection(*waiting)
    assert loop.accepted == 1, "the other has less to do"
    assert not loop.reading, "else the loop would spin"
    seconds, after, arguments = loop.later[-1]
    assert 0 < seconds <= 0.02
    after(*arguments)
    assert (loop.accepted, loop.reading) == (2, True), "nobody took it, so it is ours: another worker may be dead"
    for _, ended, count in [item for item in loop.later if item[2] == (-1,)]:
        ended(*count)
    assert ours.more() == 0


def test_a_server_that_stops_meanwhile_takes_nothing(tmp_path: Path) -> None:
    loop, ours, _ = taking(tmp_path)
    ours.post(9)
    socket = _Socket()
    loop._accept_connection(None, socket, None, None, 2048)
    socket.file = -1
    _, after, arguments = loop.later[-1]
    after(*arguments)
    assert (loop.accepted, loop.reading) == (0, False)


def test_paths_of_ours_do_not_pass_through_theirs() -> None:
    met: list[str] = []

    def app(name: str) -> Any:
        async def called(scope: Any, receive: Any, send: Any) -> None:
            met.append(name)

        return called

    both = Beside(app("ours"), ["/v1/segment"], app("theirs"))
    for scope in ({"type": "http", "path": "/v1/segment"}, {"type": "http", "path": "/livez"}, {"type": "lifespan"}):
        asyncio.run(both(scope, None, None))
    assert met == ["ours", "theirs", "theirs"]


def test_an_answer_that_does_not_begin_in_time_is_a_504_and_its_work_is_cancelled() -> None:
    ended: list[str] = []

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    async def begun(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await asyncio.sleep(0.1)
        ended.append("answered")

    async def statuses(app: Any) -> list[int]:
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        await Deadline(app, 0.05)({"type": "http", "medae.request": "0"}, None, send)
        return [message["status"] for message in sent if "status" in message]

    assert asyncio.run(statuses(slow)) == [504]
    assert asyncio.run(statuses(begun)) == [200], "a long answer is not cut"
    assert ended == ["cancelled", "answered"]


def test_a_timeout_of_the_apps_own_is_no_504() -> None:
    async def broken(scope: Any, receive: Any, send: Any) -> None:
        raise TimeoutError

    with pytest.raises(TimeoutError):
        asyncio.run(Deadline(broken, 5)({"type": "http", "medae.request": "0"}, None, None))
