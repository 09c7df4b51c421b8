"""Takes the labels of images from the class folders that they lie in, and measures predictions by them."""

import logging
import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dnt import errors
from dnt.data import class_order
from dnt.data.sources import folder
from dnt.inference import network as network_lib
from dnt.training import scores

_log = logging.getLogger(__name__)


def find(text: str, paths: Sequence[str], names: Sequence[str] | None, network: network_lib.Network) -> dict[str, int]:
  """Returns the labels of images by path; empty if they do not lie in folders of classes of the network.

  The class of an image is the first folder below `text`, or below the folder of a split (`test/ant/1.jpg`). Images
  outside of such folders have no label. One line says what was found.

  Args:
    text: the folder, file or glob that was given; only a folder has class folders.
    paths: the images in it, from `predictions.find`.
    names: class names that replace those of the network; None: there are none.
    network: the network that predicts. If its classes have no names, as many folders are taken in their order.

  Raises:
    errors.InputError: only some of the folders are classes of the network, and the message lists the others; or one has
      a name that several of its classes have.
  """
  base = pathlib.Path(text).expanduser()
  if not base.is_dir():
    return {}
  known = class_order.normalized(names or network.class_names)
  classes = {*known}
  folders = {path: name for path in paths if (name := _class(pathlib.Path(path).relative_to(base).parts[:-1], classes))}
  found = tuple(sorted({*folders.values()}))
  owner = f'the network of {network.origin}'
  if not (names or network.named) and len(found) == len(known):
    _log.info(f'{owner} has no class names: the folders in {text} are its classes, in their order')
    known = found
  if {*found}.isdisjoint(known):
    if found:
      _log.info(f'no folder in {text} is a class of {owner}, so that there is no accuracy: {errors.list_names(found)}')
    return {}
  try:
    class_order.check(found, known, text, owner)
  except errors.InputError as error:
    raise errors.InputError(f'{error}. To predict without labels, give the images as a quoted glob') from None
  place = {name: label for label, name in enumerate(known)}
  _log.info(f'{text}: {len(folders):,} images in the folders of {len(found):,} of {len(known):,} classes')
  return {path: place[name] for path, name in folders.items()}


def _class(parts: Sequence[str], known: Collection[str]) -> str:
  """Returns the class of an image in these nested folders, or ''."""
  names = class_order.normalized(parts)
  while names and names[0] not in known and folder.split_of(names[0]):
    names = names[1:]
  return names[0] if names else ''


class Measured(NamedTuple):
  """The predictions beside the labels.

  Attributes:
    accuracy: the fraction of the labelled images whose most likely class is theirs.
    balanced_accuracy: the mean of this fraction over the classes that have labelled images.
    confusion: int [classes, classes], true class by predicted.
    per_class: the result of `scores.per_class`; `auroc` is not known.
  """

  accuracy: float
  balanced_accuracy: float
  confusion: np.ndarray
  per_class: dict[str, list[Any]]


def measure(labels: Mapping[Any, int], predicted: Mapping[Any, int], classes: int) -> Measured | None:
  """Compares the most likely class of each image with its label; None if no image that was predicted has one.

  Args:
    labels: class indexes by path, from `find`, or by index in a split.
    predicted: class indexes by the same.
    classes: number of classes.
  """
  both = [path for path in predicted if path in labels]
  if not both:
    return None
  confusion = np.zeros((classes, classes), np.int64)
  np.add.at(confusion, ([labels[path] for path in both], [predicted[path] for path in both]), 1)
  per_class = scores.per_class(confusion, np.full(classes, np.nan))
  accuracy = int(np.trace(confusion)) / len(both)
  return Measured(accuracy, scores.balanced_accuracy(confusion), confusion, per_class)
