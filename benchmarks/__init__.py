"""Measurements of medae beside simple or pure methods, in one process, as ratios; see README.md."""
