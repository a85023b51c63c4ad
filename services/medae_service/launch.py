"""What `medae serve` calls: check everything first, then become the supervisor of the workers.

BentoML is imported inside functions only: `medae --help` must not wait for it.
"""

import contextlib
import fcntl
import ipaddress
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from medae.errors import UsageError
from medae.machine import cores
from medae.package import load, shipped
from medae.settings import load_settings, validate_settings
from medae_service import tokens
from medae_service.listening import Board
from medae_service.models import require_memory, require_unique
from medae_service.security import is_loopback
from medae_service.settings import CONFIG_VARIABLE, ServiceSettings, WorkerSettings

RUNTIME_PREFIX = "medae-serve-"
HUGE_PAGES = "glibc.malloc.hugetlb=1"
"""The allocator asks for them with madvise (glibc 2.35 and later)."""
SMALL_ON_CPU = 2
CHECK_SECONDS = 5
"""Between two looks at the workers; one that died is replaced then."""


def serve(
    packages: Sequence[str] = (),
    *,
    host: str | None = None,
    port: int | None = None,
    workers: int | None = None,
    token_file: Path | None = None,
    insecure: bool = False,
    allowed_hosts: Sequence[str] = (),
    config: Path | None = None,
) -> int:
    """Run the service until SIGINT or SIGTERM; returns 0 when all workers have finished their requests.

    What is None, False or empty comes from `config`, else from the defaults of ServiceSettings.
    Raises PackageError, UnknownModel, SettingsError and UsageError before anything is started.
    """
    given = {
        "packages": tuple(packages),
        "host": host,
        "port": port,
        "workers": workers,
        "token_file": token_file,
        "insecure": insecure,
        "allowed_hosts": tuple(allowed_hosts),
    }
    settings = _merge(load_settings(config, ServiceSettings) if config else ServiceSettings(), given)
    resolved = resolve(settings)
    with _runtime_folder() as folder:
        shared = {"spool": _private(folder / "spool"), "board": Board.make(folder / "board", resolved.workers or 1)}
        _run(resolved.model_copy(update=shared), folder)
    return 0


def resolve(settings: ServiceSettings) -> WorkerSettings:
    """Everything checked, nothing left to look up: absolute package folders, checked tokens, a free port.

    Raises PackageError, UnknownModel, UsageError.
    """
    names = settings.packages or tuple(shipped())
    if not names:
        raise UsageError("no model to serve; give the folder of a package, such as the one that `medae train` made")
    packages = [load(name) for name in names]
    require_unique(packages)
    require_memory(packages, settings.model_memory_bytes)
    host = _address(settings.host)
    if settings.token_file is not None:
        tokens.check(settings.token_file)
    elif not is_loopback(host) and not settings.insecure:
        raise UsageError(
            f"{host} can be reached by others: give --token-file FILE (`medae token new NAME --file FILE` makes it), "
            "or --insecure to let everyone in"
        )
    update = {
        "packages": tuple(str(Path(name).resolve()) if Path(name).is_dir() else name for name in names),
        "host": host,
        "port": _free_port(host, settings.port),
        "workers": settings.workers or _gpus(settings.device) or cores(),
        "small": settings.small or (settings.computing if _gpus(settings.device) else SMALL_ON_CPU),
        "allowed_hosts": (*settings.allowed_hosts, host),
        # not resolved: a secret that is a link is changed by changing the link
        "token_file": settings.token_file and settings.token_file.absolute(),
        "launcher": os.getpid(),
    }
    return WorkerSettings.model_validate(settings.model_dump() | update)


def _merge(settings: ServiceSettings, given: Mapping[str, object]) -> ServiceSettings:
    changed = {name: value for name, value in given.items() if value not in (None, False, ())}
    return validate_settings(settings.model_dump() | changed, ServiceSettings, "medae serve")


def _address(host: str) -> str:
    try:
        return str(ipaddress.ip_address("127.0.0.1" if host == "localhost" else host))
    except ValueError:
        raise UsageError(f"{host}: the host to listen on is an IP address of this machine, or localhost") from None


def _free_port(host: str, port: int) -> int:
    """`port`, or any free one for 0. Raises UsageError when it cannot be had."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            return int(probe.getsockname()[1])
    except OSError as error:
        raise UsageError(f"cannot listen on {host}, port {port}: {error.strerror}; choose another") from None


def _gpus(device: str) -> int:
    """How many this service uses."""
    if device.startswith("cuda:"):
        return 1
    return 0 if device == "cpu" else len(list(Path("/dev").glob("nvidia[0-9]*")))


@contextlib.contextmanager
def _runtime_folder() -> Iterator[Path]:
    """A private folder for settings, uploads and what BentoML writes; gone afterwards, also after a crash:
    each start removes those whose owner does not hold its lock any more."""
    for old in Path(tempfile.gettempdir()).glob(f"{RUNTIME_PREFIX}*"):
        _remove_if_left(old)
    folder = Path(tempfile.mkdtemp(prefix=RUNTIME_PREFIX))  # mode 0700
    try:
        with open(folder / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _remove_if_left(folder: Path) -> None:
    try:
        if folder.lstat().st_uid != os.getuid() or folder.is_symlink():
            return
        with open(folder / "lock") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
    except OSError:  # held by a running service, or just being made
        return


def _private(folder: Path) -> Path:
    folder.mkdir(mode=0o700)
    return folder


def _run(settings: WorkerSettings, folder: Path) -> None:
    path = folder / "service.json"
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(settings.model_dump_json(indent=2))
    os.environ.update(
        {
            CONFIG_VARIABLE: str(path),
            "OMP_NUM_THREADS": "1",
            # huge pages for the heap: else the speed of a process is a matter of luck, a fifth up or down, with the
            # places of its pages in the caches
            "GLIBC_TUNABLES": ":".join(filter(None, (os.environ.get("GLIBC_TUNABLES"), HUGE_PAGES))),
            "BENTOML_DO_NOT_TRACK": "True",
            # metrics of another service would be wiped, and ours by it, in the shared default folder
            "BENTOML_HOME": str(_private(folder / "bentoml")),
            "TMPDIR": str(_private(folder / "temporary")),
        }
    )
    tempfile.tempdir = None  # look at TMPDIR again
    with contextlib.chdir(_private(folder / "run")):  # else workers import modules from wherever we stand
        from bentoml._internal.utils import circus

        from medae_service.service import medae_service

        circus.create_standalone_arbiter = _private_arbiter
        medae_service.serve_http(host=settings.host, port=settings.port)


def _private_arbiter(watchers: list[Any], *, threaded: bool = False, **options: Any) -> Any:
    """BentoML's supervisor, with its control sockets in our private folder.

    It takes commands ("run this program") from whoever can connect, and BentoML lets it listen on TCP: there, every
    account of the machine could run programs in our name.
    """
    from bentoml._internal.utils.circus import Arbiter

    # relative: the path of a socket holds about 100 characters only
    return Arbiter(
        watchers, endpoint="ipc://control", pubsub_endpoint="ipc://events", check_delay=CHECK_SECONDS, **options
    )
