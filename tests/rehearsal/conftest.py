"""Rehearsals on the CPU devices of the tests."""

import pytest

from dnt.rehearsal import rehearsal, stand_in, targets

MLP = ((192, 128), (128, 128), (128, 10))  # the kernels of `plain`


@pytest.fixture
def rehearse():
  """Rehearses a config on a target, such as `cpu:4`."""

  def run(config, text):
    (target,) = targets.parse([text])
    targets.prepare([target])
    return rehearsal.rehearse(*stand_in.load(config, None), target)

  return run


@pytest.fixture
def plain(tiny):
  """The tiny MLP, of 192, 128, 128 and 10 units, without norms; its products have more rows than columns."""
  tiny.model.norm = 'none'
  tiny.model.width, tiny.model.depth = 128, 3
  tiny.train.batch_size = tiny.data.synthetic_examples = 512
  tiny.telemetry.every = '0'
  return tiny


@pytest.fixture
def convolutional(tiny):
  """A ResNet-8 on images of 16 pixels."""
  tiny.data.image_size = 16
  tiny.model.update({'name': 'resnet', 'depth': 8, 'width': None})
  tiny.telemetry.every = '0'
  return tiny
