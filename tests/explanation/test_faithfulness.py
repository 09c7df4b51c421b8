"""Deletion and insertion on networks whose answer is known, and order and blur against SciPy."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from dnt.explanation import faithfulness

SIZE = (10, 12)


@pytest.fixture
def draw():
  return np.random.default_rng(0)


def important(fraction):
  """A map [H, W] that is one on a fraction of the pixels, in the middle of the order of rows."""
  weights = np.zeros(SIZE[0] * SIZE[1], np.float32)
  count = round(fraction * weights.size)
  weights[20 : 20 + count] = 1
  return weights.reshape(SIZE)


def mean_over(weights):
  """A network whose probability is the mean of the image where `weights` are one."""
  return lambda images: jnp.sum(images[..., 0] * weights[None], (1, 2)) / weights.sum()


@pytest.mark.parametrize('fraction', [0.25, 0.5])
def test_areas_of_a_linear_network_are_triangles(fraction, draw):
  """The probability falls along a line over the fraction that matters, then stays; exact by trapezoids."""
  weights = important(fraction)
  images = jnp.ones((1, *SIZE, 1))
  order = faithfulness.ranks(weights[None], draw.random((1, *SIZE)))
  deletion = faithfulness.curve(mean_over(weights), images, 0 * images, order)
  insertion = faithfulness.curve(mean_over(weights), 0 * images, images, order)
  assert deletion.shape == (faithfulness.STEPS + 1, 1)
  np.testing.assert_allclose(faithfulness.area(deletion), fraction / 2, rtol=1e-5)
  np.testing.assert_allclose(faithfulness.area(insertion), 1 - fraction / 2, rtol=1e-5)
  backwards = faithfulness.ranks(-weights[None], draw.random((1, *SIZE)))
  deletion = faithfulness.curve(mean_over(weights), images, 0 * images, backwards)
  np.testing.assert_allclose(faithfulness.area(deletion), 1 - fraction / 2, rtol=1e-5)


def test_a_map_is_measured_beside_a_random_one(draw):
  """On images whose blur says something too."""
  weights = important(0.25)
  images = jnp.asarray(np.where(weights > 0, 1, draw.random((8, *SIZE)))[..., None], jnp.float32)
  ties = draw.random((8, *SIZE))
  right = faithfulness.measure(mean_over(weights), images, faithfulness.ranks(np.stack([weights] * 8), ties))
  random = faithfulness.measure(mean_over(weights), images, faithfulness.ranks(ties, ties))
  np.testing.assert_allclose(right.deletion, 0.125, rtol=1e-5)
  blurred = np.asarray(mean_over(weights)(faithfulness.blur(images)))
  np.testing.assert_allclose(right.insertion, 1 - 0.125 * (1 - blurred), atol=0.02)
  assert (random.deletion > 0.4).all() and (random.deletion < 0.6).all()
  assert (random.insertion < right.insertion).all()


def test_a_map_that_says_nothing_is_the_random_one(draw):
  ties = draw.random((2, *SIZE))
  np.testing.assert_array_equal(faithfulness.ranks(np.zeros((2, *SIZE)), ties), faithfulness.ranks(ties, ties))


def test_ranks_count_down_the_map(draw):
  maps = draw.permutation(2 * SIZE[0] * SIZE[1]).reshape(2, *SIZE)
  found = faithfulness.ranks(maps, 0 * maps)
  want = [maps[0].size - 1 - np.argsort(np.argsort(each.ravel())) for each in maps]
  np.testing.assert_array_equal(found.reshape(2, -1), want)


@pytest.mark.parametrize(('side', 'sigma'), [(224, 10), (64, 640 / 224), (32, 2), (8, 2)])
def test_the_blur_is_a_gaussian(draw, side, sigma):
  images = draw.random((2, side, side, 3)).astype(np.float32)
  want = ndimage.gaussian_filter(images, (0, sigma, sigma, 0), mode='constant', truncate=20)
  weight = ndimage.gaussian_filter(np.ones_like(images), (0, sigma, sigma, 0), mode='constant', truncate=20)
  np.testing.assert_allclose(faithfulness.blur(jnp.asarray(images)), want / weight, atol=1e-4)


def test_random_maps_are_of_the_image_alone():
  whole = faithfulness.random_maps(range(5), (7, 7))
  assert whole.shape == (5, 7, 7) and whole.dtype == np.float32
  np.testing.assert_array_equal(faithfulness.random_maps(range(3, 5), (7, 7)), whole[3:])
  assert len({each.tobytes() for each in whole}) == 5
