import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from dnt.data.transforms import augment, mixing
from dnt.parallel import mesh as meshes

pytestmark = pytest.mark.usefixtures('eight_devices')

KEY = jax.random.key(5)
HEIGHT, WIDTH = 20, 12


def draws(mixup, cutmix, count=2000):
  keys = jax.random.split(KEY, count)
  return [
    np.asarray(each) for each in jax.jit(jax.vmap(lambda key: mixing.draw(mixup, cutmix, key, HEIGHT, WIDTH)))(keys)
  ]


def area(box):
  top, bottom, left, right = box.T
  return (bottom - top) * (right - left)


@pytest.mark.parametrize('alpha', [0.2, 1.0])
def test_mixups_share_is_beta(alpha):
  label, fraction, box = draws(alpha, 0.0)

  np.testing.assert_array_equal(label, fraction)
  assert not box.any()
  assert abs(fraction.mean() - 0.5) < 0.04
  assert abs(fraction.var() - 1 / (4 * (2 * alpha + 1))) < 0.01  # of Beta(alpha, alpha)
  assert ((fraction >= 0) & (fraction <= 1)).all()


@pytest.mark.parametrize('alpha', [0.1, 0.5, 1.0, 8.0])
def test_mixups_share_has_the_quantiles_of_beta_and_takes_any_value(alpha):
  label, _, _ = draws(alpha, 0.0)

  inner = label[(label > 0.01) & (label < 0.99)]
  assert len(np.unique(inner)) > 0.99 * len(inner)
  for probability in (0.25, 0.4, 0.5, 0.6, 0.75):
    below = np.mean(label <= stats.beta(alpha, alpha).ppf(probability))
    assert abs(below - probability) < 4 * np.sqrt(probability * (1 - probability) / len(label))


def test_the_ends_of_the_random_bits_give_shares():
  radius, angle = (each.reshape(-1) for each in np.meshgrid(*[np.uint32([0, 2**30, 2**31, 2**32 - 1])] * 2))
  for alpha in (1e-3, 0.2, 100.0):
    fraction = np.asarray(mixing._beta(alpha, radius, angle))
    assert ((fraction >= 0) & (fraction <= 1)).all()


def test_cutmix_boxes_lie_inside_and_the_labels_share_is_what_they_leave():
  label, fraction, box = draws(0.0, 1.0)
  top, bottom, left, right = box.T

  np.testing.assert_array_equal(fraction, 1.0)
  np.testing.assert_allclose(label, 1 - area(box) / (HEIGHT * WIDTH), atol=1e-6)
  assert ((top >= 0) & (top <= bottom) & (bottom <= HEIGHT)).all()
  assert ((left >= 0) & (left <= right) & (right <= WIDTH)).all()
  # Boxes that no edge cuts have the sides sqrt(1 - lambda) of the image, to two pixels.
  inside = (top > 0) & (bottom < HEIGHT) & (left > 0) & (right < WIDTH)
  difference = (bottom - top)[inside] / HEIGHT - (right - left)[inside] / WIDTH
  assert (np.abs(difference) <= 2 / WIDTH).all()
  # Centers are uniform over the pixels: a box reaches the first one from one center more than it reaches the last one.
  assert abs((top == 0).mean() - (bottom == HEIGHT).mean() - 1 / HEIGHT) < 0.04
  assert abs((left == 0).mean() - (right == WIDTH).mean() - 1 / WIDTH) < 0.04


@pytest.mark.parametrize('alpha', [0.2, 1.0, 5.0])
def test_cutmix_shares_are_those_of_yun_et_al(alpha):
  """The label's share in their algorithm 1, and torchvision's: the sides are sqrt(1 - lambda), lambda is Beta."""
  label, _, _ = draws(0.0, alpha)

  draw = np.random.default_rng(0)
  half = 0.5 * np.sqrt(1 - draw.beta(alpha, alpha, 100_000))
  sides = []
  for side in (HEIGHT, WIDTH):
    center, reach = draw.integers(0, side, len(half)), (half * side).astype(int)
    sides.append(np.minimum(center + reach, side) - np.maximum(center - reach, 0))
  expected = 1 - sides[0] * sides[1] / (HEIGHT * WIDTH)
  # Rounded, since shares are few values and the test would tell them apart by the last bit.
  assert stats.ks_2samp(label.astype(np.float64).round(6), expected.round(6)).pvalue > 1e-3


def test_with_both_each_is_taken_half_of_the_time():
  label, fraction, box = draws(0.3, 1.0)
  cut = fraction == 1.0

  assert abs(cut.mean() - 0.5) < 0.04
  assert not box[~cut].any()
  assert (area(box)[cut] > 0).mean() > 0.7
  np.testing.assert_array_equal(label[~cut], fraction[~cut])


def batch(size=8, height=4, width=5):
  images = np.random.default_rng(0).integers(0, 256, (size, height, width, 3), np.uint8)
  label = np.arange(size, dtype=np.int32) % 3
  return {
    'image': jnp.asarray(images),
    'label': jnp.asarray(label),
    'epoch': jnp.zeros(size, jnp.int32),
    'position': jnp.arange(size, dtype=jnp.int32),
  }


def preprocess(data):
  return jax.jit(augment.make_preprocess(data, (0.5,) * 3, (0.25,) * 3, jnp.float32))


@pytest.mark.thorough
@pytest.mark.parametrize('kind', ['mixup', 'cutmix'])
def test_a_mixed_batch_recomputed(data, kind):
  data[kind], data.augment, data.crop_padding, data.erasing = 1.0, 'pad_crop_flip', 1, 0.5
  original, pair, finish = batch(), jax.jit(mixing.make(data)), preprocess(data)
  draw = jax.jit(lambda key: mixing.draw(data.mixup, data.cutmix, key, 4, 5))
  key = next(key for key in map(jax.random.key, range(20)) if 0.1 < draw(key)[0] < 0.9)  # a mixture to speak of
  mixed = pair(original, key)
  found = finish(mixed, KEY)

  label, fraction, box = (np.asarray(each) for each in draw(key))
  before = np.roll(np.arange(8), 1)
  plain = np.asarray(finish(original, KEY))
  own = np.full((4, 5, 1), fraction)
  own[box[0] : box[1], box[2] : box[3]] = 0
  np.testing.assert_allclose(found, own * plain + (1 - own) * plain[before], rtol=1e-5, atol=1e-6)
  np.testing.assert_array_equal(mixed['label'].first, original['label'])
  np.testing.assert_array_equal(mixed['label'].second, original['label'][before])
  np.testing.assert_allclose(mixed['label'].fraction, np.full(8, label))


def test_a_fraction_of_one_leaves_images_as_they_are():
  images = np.random.default_rng(0).normal(size=(4, 3, 3, 2)).astype(np.float32)
  recipe = mixing.Recipe(jnp.ones(4), jnp.zeros((4, 4), jnp.int32))
  np.testing.assert_array_equal(jax.jit(mixing.mix)(images, images[::-1], recipe), images)
  assert jax.eval_shape(mixing.mix, *[images.astype(jnp.bfloat16)] * 2, recipe).dtype == jnp.bfloat16


def test_a_box_over_everything_leaves_the_partner():
  images = np.random.default_rng(0).normal(size=(2, 3, 4, 2)).astype(np.float32)
  recipe = mixing.Recipe(np.ones(2, np.float32), np.tile(np.array([0, 3, 0, 4]), (2, 1)))
  np.testing.assert_array_equal(jax.jit(mixing.mix)(images, images[::-1], recipe), images[::-1])


def test_without_mixing_the_batch_is_the_same_object(data):
  original = batch()
  assert mixing.make(data)(original, KEY) is original


def test_the_number_of_devices_changes_nothing(data, tiny):
  data.mixup, data.cutmix = 0.4, 1.0
  mesh = meshes.make_mesh(tiny.mesh)
  assert mesh.size == 8
  mix = jax.jit(mixing.make(data))
  whole, spread = batch(16), meshes.place(batch(16), meshes.batch_sharding(mesh))

  found, expected = (jax.tree.leaves(mix(each, KEY)) for each in (spread, whole))
  for one, other in zip(found, expected, strict=True):
    np.testing.assert_array_equal(one, other)


def test_mixed_labels_are_what_losses_take(data):
  data.mixup = 1.0
  assert isinstance(mixing.make(data)(batch(), KEY)['label'], mixing.Mixed)
