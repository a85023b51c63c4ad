"""Data: which images a training sees, in which split, and what is done to them before the network does."""
