"""Training: an experiment becomes a package, in one visible loop (loop.py)."""

from medae.training.loop import train

__all__ = ["train"]
