"""All that service.yaml can say, and what the launcher hands to its workers."""

import os
from pathlib import Path

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from medae.io.guard import DEFAULT_LIMITS, Limits
from medae.settings import Settings, load_settings

CONFIG_VARIABLE = "MEDAE_SERVICE_CONFIG"
"""Our only environment variable: the path of the workers' settings."""


class ServiceSettings(Settings):
    """`medae serve --config service.yaml`."""

    packages: tuple[str, ...] = ()
    """Folders of model packages, or names from `medae models`; without any, the shipped ones."""
    host: str = "127.0.0.1"
    """The address to listen on. Beyond loopback a token is needed."""
    port: int = Field(default=3000, ge=0, le=65535)
    """0: any free port."""
    workers: PositiveInt | None = None
    """Processes. Default: one a core on a CPU, one a device on GPUs; each has one inference thread."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    token_file: Path | None = None
    """A private file of `medae token`, or with one token a line in plain text; read again whenever it changes."""
    id_key: Path | None = None
    """A file with the secret key of the site (`openssl rand -hex 32`), under which de-identified answers name things;
    without one, none are given."""
    insecure: bool = False
    """Listen beyond loopback without a token."""
    allowed_hosts: tuple[str, ...] = ()
    """Names in the Host header beside localhost, 127.0.0.1 and ::1."""
    upload_bytes: PositiveInt = 1 << 30
    """Of one request's body."""
    upload_files: PositiveInt = 4096
    """Of one request: the slices of one series."""
    upload_seconds: PositiveFloat = 300
    """In which a request's body must have come."""
    request_seconds: PositiveInt = Field(default=1800, ge=2)
    """After which the client hears 504; above upload_seconds and the longest inference."""
    compute_seconds: PositiveFloat = 900
    """From the end of a request's body to its answer, waiting included; then 503, and its work stops."""
    computing: PositiveInt = 8
    """Requests that one worker decodes and computes at once; their tiles take turns at its device."""
    small: PositiveInt | None = None
    """Small images among them. Default: two on a CPU, one running while another is decoded or written, since more have
    no place in the caches; on a GPU all, to fill its batches."""
    waiting: NonNegativeInt = 32
    """Requests that may wait for one worker's device; more are answered 429."""
    waiting_tiles: PositiveInt = 1024
    """Tiles of all requests that may wait for one device; a request waits with its next ones until there is room."""
    batch_tiles: PositiveInt = 16
    """Tiles of one forward pass on a GPU at most; on a CPU each tile is one pass."""
    batch_milliseconds: NonNegativeFloat = 4
    """How long a GPU waits for a batch to fill."""
    request_items: PositiveInt = 256
    """Images of one request to /v1/tiles."""
    model_memory_bytes: PositiveInt | None = None
    """For the weights of all models on one device; what was asked least lately is put away first. Default: no bound."""
    decoders: PositiveInt | None = None
    """Processes of one worker that decode uploads. Default: its share of the cores, from two to four."""
    decode_seconds: PositiveFloat = 60
    """In which one image must be decoded; a decoder that takes longer is killed and the request answered 422."""
    decode_memory_bytes: int = Field(default=4 << 30, ge=1 << 28)
    """Address space of one decoder; its programs take a quarter of a gigabyte of it."""
    limits: Limits = DEFAULT_LIMITS
    """What an image may declare before it is decoded."""


class WorkerSettings(ServiceSettings):
    """The resolved settings, written by the launcher into a private file."""

    spool: Path | None = None
    """A private folder for uploads; None: the system's temporary folder."""
    board: Path | None = None
    """The file in which workers tell each other how busy they are."""
    launcher: PositiveInt | None = None
    """Process id of the supervisor; a worker does not outlive it."""


def worker_settings() -> WorkerSettings:
    """The settings of this process. Raises SettingsError."""
    path = os.environ.get(CONFIG_VARIABLE)
    return load_settings(Path(path), WorkerSettings) if path else WorkerSettings()
