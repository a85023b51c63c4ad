"""Embedding a collection: one vector an image, as a Parquet table that every data tool reads."""

import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medae.errors import InputError
from medae.image import Image
from medae.io.answer import AnswerFile
from medae.latent.space import LatentSpace, pooled
from medae.metrics.book import Usage
from medae.networks import Codes
from medae.networks.vqvae import VQVAE

Collection = Iterable[tuple[str, Callable[[], Image]]]
"""(id, how to read it): an image that cannot be read costs only itself."""


@dataclass(frozen=True)
class Embedding:
    """Vectors of images."""

    ids: Sequence[str]
    vectors: NDArray[np.float32]
    """(images, Z): the mean over all places of the latent's point."""
    failed: Sequence[tuple[str, str]]
    """(id, reason)."""
    usage: Usage | None = None
    """Of a network with a book: how often each entry was chosen in all images."""

    def parquet(self, digest: str) -> AnswerFile:
        """Columns id (string) and vector (list of float32); the metadata name the package by its digest."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        width = self.vectors.shape[1] if len(self.vectors) else 0
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(self.vectors.reshape(-1)), width)
        table = pa.table({"id": pa.array(self.ids, pa.string()), "vector": vectors.cast(pa.list_(pa.float32()))})
        table = table.replace_schema_metadata({"medae.package": digest, "medae.pooling": "mean over places"})
        file = io.BytesIO()
        pq.write_table(table, file, compression="zstd")
        return AnswerFile("embedding.parquet", "application/vnd.apache.parquet", file.getvalue())


def embed(
    space: LatentSpace, images: Collection, *, watch: Callable[[str, str | None], None] = lambda id, reason: None
) -> Embedding:
    """One vector an image, read and prepared as for an answer. watch: called with (id, reason or None) after each."""
    ids, vectors, failed, indices = [], [], [], []
    for name, read in images:
        reason = None
        try:
            latent = space.encode(read())
        except InputError as error:
            reason = str(error)
            failed.append((name, reason))
        else:
            ids.append(name)
            vectors.append(pooled(latent))
            indices += [latent.indices] if isinstance(latent, Codes) else []
        watch(name, reason)
    network = space.network
    usage = Usage.of(indices, network.quantiser.codes) if isinstance(network, VQVAE) else None
    return Embedding(ids, np.array(vectors, np.float32).reshape(len(ids), -1), failed, usage)
