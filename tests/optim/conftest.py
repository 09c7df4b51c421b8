"""One small network's parameters in both layouts, and gradients for them."""

import numpy as np
import pytest

from dnt import trees
from dnt.models import depth, layouts

ROWS = {('stage1',): 2}
SHAPES = {
  'stem/conv/kernel': (3, 3, 3, 8),
  'stem/norm/scale': (8,),
  'stage1/block001/conv/kernel': (3, 3, 8, 8),
  'stage1/block001/norm/scale': (8,),
  'stage1/block002/conv/kernel': (3, 3, 8, 8),
  'stage1/block002/norm/scale': (8,),
  'stage1/block003/conv/kernel': (3, 3, 8, 8),
  'stage1/block003/norm/scale': (8,),
  'dense/kernel': (5, 8),
  'dense/bias': (8,),
  'head/kernel': (8, 5),
  'head/bias': (5,),
}
BLOCKS = ('stem', 'stage1/block001', 'stage1/block002', 'stage1/block003', 'dense', 'head')


class Network:
  """Trees of that network, drawn from a seed; blocks 2 and 3 are rows of `stage1/scanned` in the scanned layout."""

  unrolled = tuple(depth.Entry(name, name) for name in BLOCKS)
  scanned = (
    *unrolled[:2],
    depth.Entry('stage1/block002', 'stage1/scanned', 0),
    depth.Entry('stage1/block003', 'stage1/scanned', 1),
    *unrolled[4:],
  )

  @staticmethod
  def tree(seed, scale=1.0):
    generator = np.random.default_rng(seed)
    flat = {path: scale * generator.normal(size=shape).astype(np.float32) for path, shape in SHAPES.items()}
    return trees.unflatten(flat)

  @staticmethod
  def stack(tree):
    return layouts.to_scanned(tree, ROWS)

  @staticmethod
  def unstack(tree):
    return layouts.to_unrolled(tree, ROWS)


@pytest.fixture
def network():
  return Network
