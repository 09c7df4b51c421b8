"""Reads one split of a data source, as a run does for several."""

from dnt.data import sources


def load(config, split, seed):
  """Reads a split; images are held out if `config.hold_out` is set, and of class folders alone a part is val."""
  available = sources.find(config, seed)
  return sources.read(sources.hold_out(available, config, seed) if config.hold_out else available, config, split)
