"""The token file: made, listed, revoked, read again while a service runs, and never a token in it or beside it."""

import json
import os
import stat
import threading
from pathlib import Path

import pytest
from typer.testing import CliRunner

from medae.cli import app
from medae.errors import OutputError, UsageError
from medae_service.tokens import CLIENT_SCOPES, Keys, Scope, check, digest_of, new, parse, read, revoke
from tests.service_parts import client_of, problem, recorded_log, segmenter

SECRET = "hunter2-hunter2-hunter2"


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tokens"


# the file


def test_a_token_is_random_and_stored_as_its_hash(path: Path) -> None:
    made = {new(path, f"client-{number}", CLIENT_SCOPES) for number in range(5)}
    assert len(made) == 5
    assert all(token.startswith("medae_") and len(token) == 6 + 43 for token in made)  # 43 characters: 256 bits
    text = path.read_text()
    assert not [token for token in made if token in text or token[6:] in text]
    assert {entry.sha256 for entry in read(path)} == set(map(digest_of, made))
    assert [entry.name for entry in read(path)] == [f"client-{number}" for number in range(5)]
    assert list(path.parent.iterdir()) == [path], "temporary files or locks are left"


def test_the_file_is_private_and_its_comments_stay(path: Path) -> None:
    path.write_text(f"# of the east wing\n\n{SECRET}\n")
    path.chmod(0o644)
    new(path, "one", ["segment"])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_text().startswith(f"# of the east wing\n\n{SECRET}\none segment ")
    revoke(path, "one")
    assert path.read_text() == f"# of the east wing\n\n{SECRET}\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_link_to_the_file_stays_a_link(path: Path) -> None:
    target = path.with_name("target")
    new(target, "one", ["segment"])
    path.symlink_to(target)
    new(path, "two", ["score"])
    assert path.is_symlink()
    assert [entry.name for entry in read(target)] == ["one", "two"]


def test_many_writers_lose_nothing(path: Path) -> None:
    def make(number: int) -> None:
        for each in range(5):
            new(path, f"client-{number}-{each}", ["score"])

    threads = [threading.Thread(target=make, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(read(path)) == 40


@pytest.mark.parametrize("name", ["", "a b", "-x", "ä", "x" * 41, "a\nb", "#x", "../x"])
def test_names_that_are_none(path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="a name is"):
        new(path, name, ["segment"])
    assert not path.exists()


@pytest.mark.parametrize("scopes", [[], ["all"], ["segment", "nothing"], ["segment,score"]])
def test_scopes_that_are_none(path: Path, scopes: list[str]) -> None:
    with pytest.raises(UsageError, match="a scope is one of"):
        new(path, "one", scopes)
    assert not path.exists()


def test_a_name_is_given_once_and_only_what_is_there_is_revoked(path: Path) -> None:
    path.write_text(f"{SECRET}\n")
    new(path, "one", ["segment"])
    before = path.read_text()
    with pytest.raises(UsageError, match="revoke it first"):
        new(path, "one", ["score"])
    for name in ("two", "line-1", SECRET, "segment"):
        with pytest.raises(UsageError, match="has no token"):
            revoke(path, name)
    assert path.read_text() == before


def test_where_nothing_can_be_written(path: Path) -> None:
    with pytest.raises(OutputError, match="its folder"):
        new(path / "none" / "tokens", "one", ["score"])
    path.mkdir()
    with pytest.raises(UsageError, match="cannot be read"):
        new(path, "one", ["score"])


@pytest.mark.parametrize(
    "line",
    [
        f"{SECRET} {SECRET}",
        f"one segment {SECRET}",
        f"one segment {digest_of(SECRET).upper()}",
        f"one segment {digest_of(SECRET)} more",
        f"one {SECRET} {digest_of(SECRET)}",
        f"one segment,{SECRET} {digest_of(SECRET)}",
        f"{SECRET}! segment {digest_of(SECRET)}",
    ],
)
def test_a_damaged_line_is_refused_without_being_quoted(path: Path, line: str) -> None:
    with pytest.raises(UsageError) as raised:
        parse(f"# first\n{line}\n")
    assert SECRET not in str(raised.value)
    path.write_text(line)
    with pytest.raises(UsageError):
        new(path, "two", ["score"])
    assert path.read_text() == line, "a file that is not understood is not rewritten"


def test_plain_tokens_may_do_everything_and_hashes_are_no_tokens(path: Path) -> None:
    path.write_text(f"{SECRET}\n")
    token = new(path, "one", ["segment"])
    keys = Keys(path)
    plain, hashed = keys.find(SECRET), keys.find(token)
    assert plain is not None and hashed is not None
    scopes: tuple[Scope, ...] = ("segment", "score", "metrics", "admin")
    assert [plain.may(scope) for scope in scopes] == [True] * 4
    assert [hashed.may(scope) for scope in scopes] == [True, False, False, False]
    for wrong in ("", "one", "line-1", digest_of(token), digest_of(SECRET), SECRET[:-1], SECRET + "x"):
        assert keys.find(wrong) is None


def test_check_refuses_an_empty_file_and_warns_of_a_bare_one(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path.write_text("# nothing\n")
    with pytest.raises(UsageError, match="medae token new"):
        check(path)
    path.write_text("short\n")
    path.chmod(0o640)
    check(path)
    assert "others may read" in caplog.text and "can be guessed" in caplog.text and "short" not in caplog.text


# a running service


def test_a_revoked_token_is_refused_at_once_and_a_new_one_let_in(path: Path) -> None:
    first = new(path, "first", ["models"])
    with client_of(segmenter(), token_file=path) as client:
        assert client.get("/v1/models", headers=bearer(first)).status_code == 200
        second = new(path, "second", ["models"])
        assert client.get("/v1/models", headers=bearer(second)).status_code == 200
        revoke(path, "first")
        problem(client.get("/v1/models", headers=bearer(first)), 401, "no-token")
        assert client.get("/v1/models", headers=bearer(second)).status_code == 200
        revoke(path, "second")
        problem(client.get("/v1/models", headers=bearer(second)), 401, "no-token")
        problem(client.get("/v1/models"), 401, "no-token")


def test_a_file_that_is_gone_or_broken_opens_nothing(path: Path) -> None:
    token = new(path, "one", ["models"])
    whole = path.read_bytes()
    with recorded_log() as log, client_of(segmenter(), token_file=path) as client:
        assert client.get("/v1/models", headers=bearer(token)).status_code == 200
        for state in (None, whole[:-9], b"\xff\xfe", b""):
            path.unlink(missing_ok=True)
            if state is not None:
                path.write_bytes(state)
            problem(client.get("/v1/models", headers=bearer(token)), 401, "no-token")
            problem(client.get("/v1/models"), 401, "no-token")
        path.write_bytes(whole)
        assert client.get("/v1/models", headers=bearer(token)).status_code == 200
    assert "nobody is let in" in log.getvalue()
    assert token not in log.getvalue()


def test_the_file_is_read_when_it_changes_only(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token = new(path, "one", ["models"])
    keys, reads = Keys(path), []
    original = Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda self, **given: reads.append(1) or original(self, **given))
    for _ in range(5):
        assert keys.find(token) is not None
    assert len(reads) == 1
    path.write_text("# none\n")
    os.utime(path, ns=(0, 0))
    assert keys.find(token) is None
    assert len(reads) == 2


def test_the_log_says_whose_token_came_never_which(path: Path) -> None:
    token = new(path, "scanner-2", ["models"])
    with recorded_log() as log, client_of(segmenter(), token_file=path) as client:
        client.get("/v1/models", headers=bearer(token))
        client.post("/v1/segment", headers=bearer(token))
        client.get("/v1/models", headers=bearer("medae_wrong"))
    lines = [json.loads(line) for line in log.getvalue().splitlines() if '"message": "request"' in line]
    assert [(line["status"], line.get("client")) for line in lines] == [
        (200, "scanner-2"),
        (403, "scanner-2"),
        (401, None),
    ]
    assert token not in log.getvalue() and digest_of(token) not in log.getvalue()
    assert "wrong" not in log.getvalue()


# the command


def medae(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, list(arguments))
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.output


def test_the_commands(path: Path) -> None:
    code, printed = medae("token", "new", "scanner", "--scope", "score", "--scope", "models", "--file", str(path))
    token = printed.strip()
    assert code == 0 and token.startswith("medae_")
    medae("token", "new", "other", "--file", str(path))
    with open(path, "a") as file:
        file.write(f"{SECRET}\n")
    code, listed = medae("token", "list", "--file", str(path))
    assert code == 0
    assert listed.splitlines() == [
        "scanner\tscore,models",
        "other\tsegment,restore,score,models",
        "line-4\tadmin\tin plain text",
    ]
    assert token not in listed and SECRET not in listed
    assert medae("token", "revoke", "scanner", "--file", str(path)) == (0, "")
    assert [entry.name for entry in read(path)] == ["other", "line-3"]
    with pytest.raises(UsageError, match="has no token"):
        medae("token", "revoke", "scanner", "--file", str(path))
    with pytest.raises(UsageError, match="cannot be read"):
        medae("token", "list", "--file", str(path.with_name("none")))


def test_doctor_shows_nothing_secret(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("MEDAE_SERVICE_CONFIG", "MEDAE_TOKEN", "AWS_SECRET_ACCESS_KEY", "PGPASSWORD", "HTTPS_PROXY", "USER"):
        monkeypatch.setenv(name, f"http://{SECRET}@host")
    folder = tmp_path / SECRET
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(folder))
    for arguments in (("doctor",), ("doctor", "--json")):
        code, said = medae(*arguments)
        assert code == 0 and "medae" in said
        assert SECRET not in said
