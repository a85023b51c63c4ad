"""What an encoder says about its input. Every latent can be drawn from, or answered by its most typical value."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Code:
    """One point (B, Z, *spatial): what a decoder takes. A flat code (of a whole image) has axes of length 1."""

    z: Tensor
    """After the code's activation, which is what sparsity speaks of."""
    context: tuple[Tensor, ...] = ()
    """What the decoder needs beside the point, shallow to deep: SegNet's pooling indices."""

    def numbers(self) -> dict[str, Tensor]:
        """What a training reports of a batch: nothing."""
        return {}

    def draw(self) -> "Code":
        """Itself: nothing is left to chance."""
        return self

    def point(self) -> "Code":
        """Itself."""
        return self


@dataclass(frozen=True)
class Gaussian:
    """A diagonal normal distribution; both tensors (B, Z, *spatial)."""

    mean: Tensor
    log_variance: Tensor

    def numbers(self) -> dict[str, Tensor]:
        """What a training reports of a batch: nothing."""
        return {}

    def draw(self) -> Code:
        """A sample that gradients pass through (Kingma 2014, https://arxiv.org/abs/1312.6114, section 2.4)."""
        return Code(self.mean + torch.exp(0.5 * self.log_variance) * torch.randn_like(self.mean))

    def point(self) -> Code:
        """The mean."""
        return Code(self.mean)


@dataclass(frozen=True)
class Codes:
    """Entries of a code book: indices (B, *spatial), int64, and their vectors (B, Z, *spatial)."""

    indices: Tensor
    vectors: Tensor
    encoded: Tensor | None = None
    """What was rounded to the vectors, of a book that learns: the commitment objective holds it close to them."""

    def numbers(self) -> dict[str, Tensor]:
        """What a training reports of a batch: how many entries it chose, and as how many equally frequent ones they
        count (perplexity)."""
        counts = torch.bincount(self.indices.flatten())
        share = counts / self.indices.numel()
        return {
            "codes_used": (counts > 0).sum().float(),
            "perplexity": torch.exp(-torch.special.xlogy(share, share).sum()),
        }

    def draw(self) -> Code:
        """The vectors: a quantised code leaves nothing to chance."""
        return self.point()

    def point(self) -> Code:
        """The vectors."""
        return Code(self.vectors)


Latent = Code | Gaussian | Codes
