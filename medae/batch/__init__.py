"""From a list of inputs to results: manifest.py says what the items are, local.py runs them one after the other."""
