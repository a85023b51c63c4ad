"""A batch from its settings to its results: plan, what is left, engine, journal, table."""

import json
import logging
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from medae import record
from medae.batch import journal, lease, results
from medae.batch.device import Post
from medae.batch.files import is_url
from medae.batch.folder import Folder, require_writable, taken
from medae.batch.item import Item
from medae.batch.journal import Journal, Staged
from medae.batch.lane import make_hand
from medae.batch.local import Inline, LocalEngine, gpus
from medae.batch.manifest import Listing
from medae.batch.orders import Order
from medae.batch.plan import Plan, known_ids, write_plan
from medae.batch.resume import Left, left
from medae.batch.settings import BatchSettings, Model, load_models
from medae.batch.work import Outcome
from medae.errors import UsageError
from medae.io.answer import AnswerFile, write_files
from medae.machine import cores
from medae.pseudonyms import Pseudonyms

logger = logging.getLogger(__name__)

FAN_OUT = 10_000
"""Cases above which answers are spread over 256 folders."""


RESERVE, RESERVE_BYTES = "reserve", 1 << 17
"""A file that is given up for the last commit: on a full disk, the records of what is done would else find no place."""


class Engine(Protocol):
    """Answers cases, in any order."""

    def run(self, items: Iterator[Item], room: Callable[[], int]) -> Iterator[tuple[Outcome, ...]]:
        """The outcomes of each case; an empty one now and then, for the clock. Raises what concerns the whole batch.

        room: how many cases may be in work or done and not committed.
        """


class Watch(Protocol):
    """Sees a batch go on."""

    def begin(self, total: int, before: int) -> None:
        """total: cases of this process, with those that were finished `before`."""

    def see(self, outcomes: Sequence[Outcome]) -> None:
        """One more case."""


def run(settings: BatchSettings, watch: Watch, *, again: bool = False) -> results.Counts:
    """Do what is left of a batch, and write its table. again: also what had failed. Returns how the batch or, of one
    that is sharded, the own shard stands.

    Stopped at any moment, it goes on from its last commit when it is called again. Raises UsageError for a call that
    does not fit what lies in the output folder, OutputError where that does not take what is written.
    """
    require_writable(settings.out)
    folder = Folder(settings.out.absolute())
    folder.segments.mkdir(parents=True, exist_ok=True)
    models = load_models(settings)
    with taken(), lease.held(folder, settings.part) as held:
        plan = _plan(folder, settings, models, first=held.first)
        work = left(folder, plan, models, settings, again=again)
        if held.first:  # only now: a call that is refused changes nothing
            plan = plan.adopt(folder.plan)
            work = replace(work, plan=plan)
            _describe(folder, settings, models)
        held.share()
        digests = {f"package {model.name}": model.package.digest for model in models}
        with record.recording(settings.out, "batch", digests=digests | {"plan": plan.digest}) as noted:
            noted.facts |= {"shard": settings.shard, "output": settings.output, "threshold": settings.threshold}
            _work(folder, plan, models, settings, work, watch)
            names = [model.name for model in models]
            counts, written = results.finish(folder, plan, names, settings.part)
            if settings.rescore:
                results.drop_superseded(folder, plan, names)
            if settings.report and (written or not folder.report.exists()) and folder.results.exists():
                from medae.batch import report

                report.write(folder, plan, models, settings, counts)
            if settings.shard is not None:
                counts = results.standing(folder, plan, names, settings.part)
            noted.facts["counts"] = {
                name: getattr(counts, name) for name in ("total", "done", "failed", "fault", "left")
            }
    return counts


def _plan(folder: Folder, settings: BatchSettings, models: Sequence[Model], *, first: bool) -> Plan:
    """The plan that holds from now on; of those who work together, the first makes it."""
    if not first:
        if _batch_json(folder)["models"] != {model.name: model.key for model in models}:
            raise UsageError("other processes are at work in this output folder with other models or settings")
        return Plan.open(folder.plan)
    journal.sweep(folder)
    earlier = Plan.open(folder.plan) if folder.plan.exists() else None
    listing = Listing(
        settings.inputs,
        out=settings.out,
        allow=settings.allow,
        known=partial(known_ids, earlier) if earlier else dict,
        may_be_empty=bool(earlier),
        pseudonyms=None if settings.id_key is None else Pseudonyms.from_file(settings.id_key),
        series=settings.series,
        regular_grid=settings.regular_grid,
    )
    # what was answered stays in the table when its input is taken away, as after a night's work
    answered = journal.read(journal.segments(folder), ["id"])["id"]
    return write_plan(listing, folder.own / "plan.part", keep=earlier, answered=answered)


def _describe(folder: Folder, settings: BatchSettings, models: Sequence[Model]) -> None:
    """Writes batch.json: enough to go on without the command that began."""
    said = settings.model_dump(mode="json", exclude={"out", "shard", "rescore"})
    said["packages"] = [str(model.folder) for model in models if not model.embeds]
    said["embed"] = [str(model.folder) for model in models if model.embeds]
    said["inputs"] = [value if is_url(value) else os.path.abspath(value) for value in settings.inputs]
    if settings.id_key is not None:
        said["id_key"] = os.path.abspath(settings.id_key)
    data = {"settings": said, "models": {model.name: model.key for model in models}}
    text = json.dumps(data, indent=2, ensure_ascii=True) + "\n"
    write_files([AnswerFile("batch.json", "application/json", text.encode())], folder.own)


def recorded(out: Path) -> BatchSettings:
    """The settings of the batch in a folder. Raises UsageError where there is none."""
    return BatchSettings.model_validate(_batch_json(Folder(out))["settings"] | {"out": out})


def recorded_keys(out: Path) -> dict[str, str]:
    """The models of the batch in a folder: what it calls each, and the digest of all that decides its answers.

    Raises UsageError where there is none.
    """
    return dict(_batch_json(Folder(out))["models"])


def _batch_json(folder: Folder) -> dict[str, Any]:
    try:
        said: dict[str, Any] = json.loads(folder.settings.read_text())
    except (OSError, ValueError):
        raise UsageError("there is no batch in this folder; start one with `medae batch run`") from None
    return said


def _work(
    folder: Folder, plan: Plan, models: Sequence[Model], settings: BatchSettings, work: Left, watch: Watch
) -> None:
    total = int(work.wanted.shape[1]) if settings.shard is None else None
    watch.begin(work.cases if total is None else total, 0 if total is None else total - work.cases)
    if not work.cases:
        return
    with _staging(folder) as staging:
        put = Staged(
            staging,
            several=len(models) > 1,
            fan_out=plan.count > FAN_OUT,
            durable=settings.engine == "ray",  # written by machines whose disks the commit cannot sync
        )
        book = Journal(folder, staging, {model.name: model.key for model in models}, max(settings.batch // 2, 1))
        engine = _engine(_order(models, settings, put), settings, work.cases)
        try:
            for outcomes in engine.run(work.items(), lambda: settings.batch - book.pending):
                if outcomes:
                    book.add(outcomes)
                    watch.see(outcomes)
                else:
                    book.tick()
        finally:
            (staging / RESERVE).unlink(missing_ok=True)
            book.commit()


def _engine(order: Order, settings: BatchSettings, cases: int) -> Engine:
    if settings.workers == 0 and settings.engine == "local":
        return Inline(make_hand(order), order.allow)
    if settings.engine == "ray":
        from medae.batch.on_ray import RayEngine

        return RayEngine(order, settings.ray_address, settings.workers)
    shared = {name: folder for name, folder in order.packages.items() if name not in order.embeds}
    posts = [Post(shared, device, 0, settings.max_vram) for device in gpus(settings.device)]
    return LocalEngine(order, min(settings.workers or cores(), cases), posts=posts, max_ram=settings.max_ram)


def _order(models: Sequence[Model], settings: BatchSettings, put: Staged) -> Order:
    return Order(
        packages={model.name: model.folder for model in models},
        embeds=tuple(model.name for model in models if model.embeds),
        put=put,
        output=settings.output,
        threshold=settings.threshold,
        dicom=settings.dicom,
        id_key=settings.id_key,
        summaries=settings.summaries,
        device=settings.device,
        gate=settings.gate,
        allow=settings.allow,
    )


@contextmanager
def _staging(folder: Folder) -> Iterator[Path]:
    """A place for answers that are not committed."""
    staging = folder.staging / uuid.uuid4().hex
    staging.mkdir(parents=True)
    (staging / RESERVE).write_bytes(os.urandom(RESERVE_BYTES))
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)
