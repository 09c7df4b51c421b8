"""Top-activating images against sorting all of them, on resident and streamed splits."""

import contextlib
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dnt.data import pipeline
from dnt.explanation import top_activating
from dnt.models import depth
from dnt.parallel import mesh as mesh_lib
from dnt.training import datasets, open_options

pytestmark = pytest.mark.usefixtures('eight_devices')

COUNT, EXAMPLES = 3, 61


class Small(nn.Module):
  """A convolution and a head."""

  @nn.compact
  def __call__(self, x, train):
    x = nn.Conv(6, (3, 3), name='conv')(x)
    return nn.Dense(10, name='head')(nn.relu(x).mean((1, 2)))


@pytest.fixture
def network(tiny):
  """A config with 61 images."""
  tiny.data.synthetic_examples = EXAMPLES
  tiny.data.workers = 0
  return tiny


def best(scores, count):
  """[N, n] to places and scores [n, count] by sorting: falling, the earlier of equals first."""
  order = np.argsort(-scores, axis=0, kind='stable')[:count]
  return order.T, np.take_along_axis(scores, order, 0).T


def search(config, step, variables, count=COUNT):
  mesh = mesh_lib.make_mesh(config.mesh)
  data = datasets.load(config, ())
  resolved = open_options.resolve(config, data)
  with contextlib.closing(pipeline.make_eval_loader(resolved, data.train, mesh)) as loader:
    seen = []
    found = top_activating.find(step, loader, mesh, variables, len(data.train), count, seen.append)
  assert len(seen) == loader.steps and seen[-1] == EXAMPLES and seen == sorted(seen)
  return found


@pytest.mark.parametrize(
  ('placement', 'batch', 'sure'), [('device', 16, 1), ('device', 64, 1), ('stream', 8, 1), ('device', 16, 100)]
)
def test_the_best_are_those_of_sorting_all(network, placement, batch, sure):
  network.data.placement, network.eval.batch_size = placement, batch
  data = datasets.load(network, ())
  images = data.train.images.astype(np.float32) / 255
  shapes = depth.trace(Small(), images.shape[1:]).variables
  draw = np.random.default_rng(0)
  variables = jax.tree.map(lambda leaf: draw.normal(size=leaf.shape).astype(np.float32), shapes)
  variables['params']['head']['kernel'] *= sure  # probabilities of 1 in float32

  def step(variables, batch):
    images = batch['image'].astype(jnp.float32) / 255
    return top_activating.score_images(Small(), depth.Entry('conv', 'conv'), variables, images)

  found = search(network, step, variables)
  activations = jax.jit(nn.Conv(6, (3, 3)).apply)({'params': variables['params']['conv']}, images)
  logits = np.asarray(jax.jit(functools.partial(Small().apply, train=False))(variables, images), np.float64)
  odds = [logits[:, label] - np.logaddexp.reduce(np.delete(logits, label, 1), 1) for label in range(10)]
  everything = {'channels': np.asarray(activations).max((1, 2)), 'classes': np.stack(odds, 1)}
  assert found.keys() == everything.keys()
  for name, scores in everything.items():
    places, values = best(scores, COUNT)
    np.testing.assert_allclose(found[name].scores, values, rtol=1e-4, atol=1e-5)
    # Where two are equal but for rounding, either may come first.
    chosen = np.take_along_axis(scores, found[name].indices.T, 0).T
    np.testing.assert_allclose(chosen, values, rtol=1e-4, atol=1e-5)
    assert (found[name].indices == places).mean() > 0.95


@pytest.mark.parametrize('batch', [8, 16, 64])
def test_of_equals_the_earlier_come_first(network, batch):
  """Scores are the labels, of which there are ten: in any batch size the same images."""
  network.eval.batch_size = batch
  data = datasets.load(network, ())
  found = search(network, lambda _, batch: {'labels': jnp.stack([batch['label'], -batch['label']], 1)}, {}, 20)
  labels = np.asarray(data.train.labels)
  places, values = best(np.stack([labels, -labels], 1), 20)
  np.testing.assert_array_equal(found['labels'].indices, places)
  np.testing.assert_array_equal(found['labels'].scores, values)


def test_a_small_split_has_no_more_images_than_it_holds(network):
  found = search(network, lambda _, batch: {'one': jnp.ones((batch['label'].shape[0], 2))}, {}, 1000)
  np.testing.assert_array_equal(found['one'].indices, np.tile(np.arange(EXAMPLES), (2, 1)))
  assert np.isfinite(found['one'].scores).all()


@pytest.mark.parametrize(('value', 'count'), [(np.nan, 20), (np.nan, EXAMPLES), (-np.inf, EXAMPLES)])
def test_scores_that_are_not_finite_come_last_and_keep_their_images(network, value, count):
  """A network may give NaN for some images, and -inf for a class that it masks."""
  data = datasets.load(network, ())
  labels = np.asarray(data.train.labels)
  scores = np.where(labels % 3 == 0, value, labels.astype(np.float32))[:, None]

  def step(_, batch):
    label = batch['label'].astype(jnp.float32)
    return {'labels': jnp.where(label % 3 == 0, value, label)[:, None]}

  found = search(network, step, {}, count)
  places, values = best(np.nan_to_num(scores, nan=-np.inf), count)
  np.testing.assert_array_equal(found['labels'].indices, places)
  np.testing.assert_array_equal(found['labels'].scores, np.take_along_axis(scores, places.T, 0).T)
