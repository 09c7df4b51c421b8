"""Looks at the data apart from the network: labels that images do not explain, few classes, the scale of the input."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from dnt.data import examples

IMAGES = 600  # of the training split, at most
PIXELS = 16  # per side of the images that are compared
NEIGHBOURS = 5
EXPLAINED = 4.0  # standard deviations above chance from which labels count as explained by the images
PERMUTATIONS = 100  # of the labels, which show what chance is
UNEQUAL = 20.0  # images of the largest class over those of the smallest
UNLEARNABLE = ('unexplained labels', 'shifted labels')  # findings that keep any network from learning
USUAL = (0.05, 20.0)  # RMS of the images as the network receives them; about 1 after normalization


class Finding(NamedTuple):
  """Describes something that is unusual in the data.

  Attributes:
    kind: 'one class', 'unequal classes', 'unexplained labels', 'shifted labels' or 'input scale'.
    text: the evidence, in one line.
  """

  kind: str
  text: str


def find(train: examples.Examples, input_rms: float) -> list[Finding]:
  """Returns what is unusual in a training split; empty if nothing is.

  Args:
    train: the training split.
    input_rms: RMS of the images of a batch, as the network receives them.
  """
  scale = find_scale(input_rms)
  found = [scale] if scale else []
  if train.labels is None:
    return found
  counts = np.bincount(train.labels, minlength=len(train.class_names))
  present = counts[counts > 0]
  if len(present) == 1:
    name = train.class_names[int(np.argmax(counts))]
    return [*found, Finding('one class', f'all {counts.max():,} images are of class {name}')]
  if present.max() / present.min() > UNEQUAL:
    text = f'the largest class has {present.max():,} images, the smallest {present.min():,}'
    found.append(Finding('unequal classes', f'{text}: see config.loss.balance_classes'))
  return found + _compare(train, train.labels)


def find_scale(input_rms: float) -> Finding | None:
  """Returns the finding on the scale of the images, if their RMS is unusual."""
  low, high = USUAL
  if low <= input_rms <= high:
    return None
  text = f'the network receives images with an RMS of {input_rms:.3g}, where 1 is usual: see config.data.mean and std'
  return Finding('input scale', text)


def _compare(train: examples.Examples, given: np.ndarray) -> list[Finding]:
  """Compares labels with those of the nearest images.

  On images that look alike if they are of one class, labels that are shuffled agree with those of the neighbours no
  more often than by chance. So do those of images which pixels do not tell apart; the text says so.
  """
  count = min(len(train), IMAGES)
  if count < 10 * NEIGHBOURS:
    return []
  # Folders list one class after the other.
  chosen = np.sort(np.random.Generator(np.random.Philox(0)).permutation(len(train))[:count])
  pixels = _shrink([train[int(index)][0] for index in chosen])
  classes = len(train.class_names)
  # Classes may differ in what the images show, or in brightness alone.
  for near in (_neighbours(pixels, normalize=False), _neighbours(pixels, normalize=True)):
    same, usual, spread = _agreement(given[chosen], near, classes)
    if not spread or same > usual + EXPLAINED * spread:
      return []
  text = f'{100 * same:.0f} % of the most similar images are of the same class, where {100 * usual:.0f} % is chance'
  for offset in (-1, 1):
    shifted, usual, spread = _agreement(given[(chosen + offset) % len(given)], near, classes)
    if shifted > usual + EXPLAINED * spread:
      text += f', but {100 * shifted:.0f} % if each image gets the label of the one beside it in the list'
      return [Finding('shifted labels', f'{text}: labels are off by one')]
  return [Finding('unexplained labels', f'{text}: labels may be shuffled, or pixels alone do not tell classes')]


def _shrink(read: Sequence[Any]) -> np.ndarray:
  """Returns images as float32 [n, values] from 0 to 1, each resized to PIXELS x PIXELS."""
  small = [np.asarray(each.convert('RGB').resize((PIXELS, PIXELS), Image.Resampling.BOX)) for each in read]
  return np.stack(small).reshape(len(small), -1).astype(np.float32) / 255


def _neighbours(pixels: np.ndarray, normalize: bool) -> np.ndarray:
  """Returns the places of the nearest other images, [n, NEIGHBOURS]; normalized, each has mean 0 and norm 1."""
  if normalize:
    pixels = pixels - pixels.mean(1, keepdims=True)
    pixels = pixels / np.maximum(np.linalg.norm(pixels, axis=1, keepdims=True), 1e-6)
  squares = np.square(pixels).sum(1)
  distances = squares[:, None] + squares - 2 * (pixels @ pixels.T)
  np.fill_diagonal(distances, np.inf)
  return np.argsort(distances, axis=1)[:, :NEIGHBOURS]


def _agreement(labels: np.ndarray, near: np.ndarray, classes: int) -> tuple[float, float, float]:
  """Returns how often neighbours are of the same class, as a mean over the classes that have enough images.

  Also its mean and its standard deviation over random permutations of the labels. All are 0 if no class has enough.
  """
  counts = np.bincount(labels, minlength=classes)
  weights = np.where(counts >= NEIGHBOURS, 1 / np.maximum(counts, 1), 0.0)
  if not weights.any():
    return 0.0, 0.0, 0.0

  def measure(labels):
    return float(np.average((labels[near] == labels[:, None]).mean(1), weights=weights[labels]))

  rng = np.random.Generator(np.random.Philox(0))
  drawn = [measure(rng.permutation(labels)) for _ in range(PERMUTATIONS)]
  return measure(labels), float(np.mean(drawn)), float(np.std(drawn))
