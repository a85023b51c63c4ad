"""What a call means by its inputs: files, folders, patterns, lists, archives and URLs become items, each one image."""

import glob
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from medae.batch.archives import choose_members, group_members
from medae.batch.files import HEAD_BYTES, File, Member, counts_as_image, is_url, to_bytes
from medae.batch.item import Item, printable, stem_of
from medae.batch.remote import list_url
from medae.errors import InputError, UsageError
from medae.io import DEFAULT_LIMITS, dicom
from medae.io.dicom_directory import is_directory, referenced_files
from medae.io.dicom_options import series_named
from medae.pseudonyms import Pseudonyms

LIST_SUFFIXES = (".csv", ".parquet")
ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")

ALL = "all"
"""Instead of one of several series: each."""


@dataclass(frozen=True)
class Manifest:
    """The items of a batch, and how many files of its folders are no images (notes, thumbnails)."""

    items: tuple[Item, ...]
    passed_over: int


def list_items(
    inputs: Sequence[str],
    *,
    out: Path | None = None,
    allow: Sequence[str] = (),
    pseudonyms: Pseudonyms | None = None,
    series: str | None = None,
    regular_grid: bool = False,
) -> Manifest:
    """The items that `inputs` name; `out`, where answers go, is never taken for an input. The rest is as in Listing.

    Raises UsageError where an input names nothing, where none holds an image, and where `out` is an input.
    """
    listing = Listing(inputs, out=out, allow=allow, pseudonyms=pseudonyms, series=series, regular_grid=regular_grid)
    return Manifest(tuple(listing), listing.passed_over)


class Listing:
    """The items of a batch, one after the other: the images in files and folders first, then those of lists, archives
    and URLs in the order of the inputs.

    Single files are one item each, except DICOM files: those of one series are one item, however they were given.
    """

    def __init__(
        self,
        inputs: Sequence[str],
        *,
        out: Path | None = None,
        allow: Sequence[str] = (),
        known: Callable[[], Mapping[bytes, str]] = dict,
        may_be_empty: bool = False,
        pseudonyms: Pseudonyms | None = None,
        series: str | None = None,
        regular_grid: bool = False,
    ) -> None:
        """allow: the beginnings of the URLs that may be read. known: gives the ids of an earlier listing, by their
        first file; asked only where an input does not name its cases itself.

        pseudonyms: ids, and a list's patients, become keyed hashes of what they would be; known ones stay.
        series: of the DICOM series in each input just one, by its number or SeriesInstanceUID; None or "all": each.
        regular_grid: whether slices that are uneven, or of a tilted gantry, are put on a regular grid.
        may_be_empty: whether a folder without images is no mistake, as that of a job that recurs.
        """
        self._inputs = inputs
        self._out = out
        self._allow = allow
        self._known = known
        self._pseudonyms = pseudonyms
        self._may_be_empty = may_be_empty
        self._series = None if series in (None, ALL) else series_named(series)
        self._regular_grid = regular_grid
        self.passed_over = 0
        """Files of folders and archives that are no images (notes, thumbnails), once all items are listed."""

    @cached_property
    def _names(self) -> "_Names":
        return _Names(self._known(), self._pseudonyms)

    def __iter__(self) -> Iterator[Item]:
        """Raises UsageError where an input names nothing, where none holds an image, and where `out` is an input."""
        named: list[Path] = []
        found: list[Path] = []
        others: list[str | Path] = []
        for number, value in enumerate(self._inputs, 1):
            paths: Sequence[str | Path] = [value] if is_url(value) else expand(value)
            if not paths:
                raise UsageError(f"input {number} of {len(self._inputs)} names no file or folder")
            for path in paths:
                if isinstance(path, str) or (path.name.lower().endswith((*LIST_SUFFIXES, *ARCHIVE_SUFFIXES))):
                    others.append(path)
                elif path.is_dir():
                    found += _walk(path, self._out)
                elif medium := _medium(path):
                    found += medium
                else:
                    named.append(path)
        nothing = True
        items = self._items(named, found, others) if self._series is None else self._chosen(named, found, others)
        for item in items:
            nothing = False
            yield item._replace(regular_grid=True) if self._regular_grid else item
        if nothing and not self._may_be_empty:
            raise UsageError(
                f"no image among the inputs ({self.passed_over} files looked at); images are PNG, JPEG, TIFF, NIfTI, "
                "MetaImage, NRRD and DICOM"
            )

    def _items(self, named: Sequence[Path], found: Sequence[Path], others: Sequence[str | Path]) -> Iterator[Item]:
        used = 0
        for group in _groups(named, [path for path in found if _counts_as_image(path)]):
            used += len(set(group) - set(named))
            yield Item(self._names.of(_stem(group), group[0]), group)
        self.passed_over += len(found) - used
        for other in others:
            yield from self._elsewhere(other)

    def _chosen(self, named: Sequence[Path], found: Sequence[Path], others: Sequence[str | Path]) -> Iterator[Item]:
        """One series of those in the files and folders, and one of each archive; lists and URLs name their images."""
        assert self._series is not None
        files = [path for path in dict.fromkeys([*named, *found]) if _is_dicom(path)]
        if files or not others:
            try:
                paths, number = dicom.choose_series(files, self._series)
            except InputError as error:
                raise UsageError(f"--series: {error}") from None
            self.passed_over += len(found) - len(set(paths) & set(found))
            yield Item(self._names.of(_stem(paths), paths[0]), paths, series=number)
        for other in others:
            if isinstance(other, str) or other.name.lower().endswith(LIST_SUFFIXES):
                yield from self._elsewhere(other)
                continue
            names, number, passed_over = choose_members(other, self._series)
            self.passed_over += passed_over
            yield self._of_archive(other, names)._replace(series=number)

    def _of_archive(self, archive: Path, names: Sequence[str]) -> Item:
        first = Member(archive, names[0])
        name = self._names.of(_stem([Path(name) for name in names]), first)
        return Item(name, (first, *(Member(archive, name) for name in names[1:])))

    def _elsewhere(self, other: str | Path) -> Iterator[Item]:
        if isinstance(other, str):
            for url in list_url(other, self._allow):
                yield Item(self._names.of(stem_of(url.address), url), (url,))
        elif other.name.lower().endswith(LIST_SUFFIXES):
            from medae.batch.lists import read_list

            for item in read_list(other):
                yield (
                    self._keyed(item)
                    if item.id
                    else Item(
                        self._names.of(stem_of(str(item.files[0])), item.files[0]),
                        item.files,
                        self._keyed(item).patient,
                        item.target,
                    )
                )
        else:
            groups, passed_over = group_members(other)
            self.passed_over += passed_over
            for group in groups:
                yield self._of_archive(other, group)

    def _keyed(self, item: Item) -> Item:
        """An item of a list, which names its case itself."""
        if self._pseudonyms is None:
            return item
        patient = None if item.patient is None else self._pseudonyms.name(item.patient)
        return item._replace(id=self._pseudonyms.name(item.id), patient=patient)


def expand(value: str) -> list[Path]:
    """The files and folders that one argument names: itself or, where no such path exists, a pattern such as
    `scans/*.png`. Empty where there is none."""
    path = Path(value)
    if path.exists():
        return [path]
    return sorted(Path(found) for found in glob.glob(value, recursive=True))


def _walk(folder: Path, out: Path | None) -> Iterator[Path]:
    """Files below a folder in the order of their names, without hidden ones and without those below `out`.

    Links to folders are not followed, so a circle of links ends.
    """
    own = out.resolve() if out else None
    if folder.resolve() == own:
        raise UsageError("the output folder is one of the inputs; answers need a folder of their own")
    for parent, folders, names in os.walk(folder, onerror=_refuse):
        here = Path(parent)
        folders[:] = sorted(name for name in folders if name[0] != "." and (here / name).resolve() != own)
        yield from (here / name for name in sorted(names) if name[0] != "." and (here / name).is_file())


def _refuse(error: OSError) -> None:
    raise UsageError(f"a folder among the inputs cannot be listed ({type(error).__name__}); its images would be missed")


def _counts_as_image(path: Path) -> bool:
    return counts_as_image(path.name) or _is_dicom(path)


def _medium(path: Path) -> list[Path]:
    """The files that a DICOMDIR names. None where it is no DICOMDIR, or where reading it will say what is wrong."""
    try:
        with path.open("rb") as file:
            return referenced_files(path, DEFAULT_LIMITS) if is_directory(file.read(1024)) else []
    except (OSError, InputError):
        return []


def _is_dicom(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return dicom.is_dicom(file.read(HEAD_BYTES))
    except OSError:
        return False  # reading it will say why


def _groups(named: Sequence[Path], found: Sequence[Path]) -> list[tuple[Path, ...]]:
    """The files of each item."""
    place = {path: number for number, path in enumerate(dict.fromkeys([*named, *found]))}
    dicom_files = [path for path in place if _is_dicom(path)]
    groups = [tuple(series.paths) for series in dicom.group_series(dicom_files)] if dicom_files else []
    grouped = {path for group in groups for path in group}
    # DICOM without a picture (reports, DICOMDIR) is left out of a folder; a named file fails with a reason instead
    alone = (place.keys() - set(dicom_files)) | set(named)
    groups += [(path,) for path in alone - grouped]
    return sorted(groups, key=lambda group: min(place[path] for path in group))


def _stem(group: Sequence[Path]) -> str:
    """What answers are called after: the file without its endings, or the folder of a series."""
    first = Path(os.path.abspath(group[0]))  # a link keeps its own name: what it points to may be called by a digest
    if len(group) > 1:
        return printable(first.parent.name) or "series"
    return stem_of(first.name)


class _Names:
    """Gives each item an id that is unique on any file system (case does not tell names apart)."""

    def __init__(self, known: Mapping[bytes, str], pseudonyms: Pseudonyms | None = None) -> None:
        self._known = known
        self._pseudonyms = pseudonyms
        self._taken = {name.casefold() for name in known.values()}
        self._tried: Counter[str] = Counter()

    def of(self, stem: str, file: File) -> str:
        """`stem`, or the first of stem-2, stem-3 ... that is free; what the file was called before, if it was."""
        if self._known and (name := self._known.get(to_bytes(file))) is not None:
            return name
        stem = stem if self._pseudonyms is None else self._pseudonyms.name(stem)
        folded = stem.casefold()
        name = stem
        while name.casefold() in self._taken:
            self._tried[folded] += 1
            name = f"{stem}-{self._tried[folded] + 1}"
        self._taken.add(name.casefold())
        return name
