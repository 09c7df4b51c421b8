"""Reads folders of images as a run does."""

import pathlib

from dnt.data import sources


def load(data, root, split='train', seed=0):
  data.source = f'folder:{root}'
  return sources.load(data, split, seed)


def names_of(source):
  """Class and file name of each image, sorted, by the paths that are read."""
  return sorted('/'.join(pathlib.Path(path).parts[-2:]) for path in source.store.paths)
