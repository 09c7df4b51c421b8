import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dnt.data.transforms import augment

KEY = jax.random.key(5)


def batch(size=64, height=6, width=5, channels=3):
  images = np.random.default_rng(0).integers(1, 256, (size, height, width, channels), np.uint8)
  return jnp.asarray(images), jnp.zeros(size, jnp.int32), jnp.arange(size, dtype=jnp.int32)


def test_crop_and_flip_are_slices_of_the_padded_image():
  images, _, _ = batch(8)
  top, left = jnp.array([0, 1, 2, 3, 4, 0, 4, 2]), jnp.array([4, 3, 2, 1, 0, 0, 4, 2])
  flip = jnp.array([0, 0, 0, 1, 1, 1, 1, 0], bool)
  found = augment.crop_and_flip(images, top, left, flip, padding=2)

  for i in range(8):
    padded = np.pad(np.asarray(images[i]), ((2, 2), (2, 2), (0, 0)))
    expected = padded[top[i] : top[i] + 6, left[i] : left[i] + 5]
    np.testing.assert_array_equal(found[i], expected[:, ::-1] if flip[i] else expected)


def run(config, *arrays):
  """The augmentation as the step runs it: compiled."""
  return np.asarray(jax.jit(lambda *a: augment.augment(config, *a))(*arrays))


def offsets(images, augmented, padding):
  """How each image was cropped and flipped, found by trying all ways."""
  found = []
  for image, result in zip(np.asarray(images), np.asarray(augmented), strict=True):
    padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    height, width = image.shape[:2]
    ways = [
      (top, left, flip)
      for top in range(2 * padding + 1)
      for left in range(2 * padding + 1)
      for flip in (False, True)
      if (padded[top : top + height, left : left + width][:, :: -1 if flip else 1] == result).all()
    ]
    assert len(ways) == 1
    found += ways
  return np.array(found)


def test_every_offset_and_both_sides_come_up_evenly(data):
  data.augment, data.crop_padding = 'pad_crop_flip', 1
  images, epoch, position = batch(900)
  ways = offsets(images, run(data, images, KEY, epoch, position), 1)

  _, counts = np.unique(ways, axis=0, return_counts=True)
  assert len(counts) == 18
  # Chi-squared, 17 degrees of freedom: 99.9 % lie below 40.8.
  assert ((counts - 50) ** 2 / 50).sum() < 40.8


def test_without_flip_nothing_is_mirrored(data):
  data.augment, data.crop_padding, data.flip = 'pad_crop_flip', 1, False
  images, epoch, position = batch()
  ways = offsets(images, run(data, images, KEY, epoch, position), 1)

  assert not ways[:, 2].any()
  assert len(np.unique(ways, axis=0)) == 9
  data.augment = 'resized_crop_flip'  # the host has made the crop
  np.testing.assert_array_equal(run(data, images, KEY, epoch, position), images)


def test_resized_crops_are_only_mirrored(data):
  data.augment = 'resized_crop_flip'
  images, epoch, position = batch()
  found = run(data, images, KEY, epoch, position)
  same = (found == np.asarray(images)).all((1, 2, 3))
  mirrored = (found == np.asarray(images)[:, :, ::-1]).all((1, 2, 3))

  assert (same ^ mirrored).all()
  assert 16 < mirrored.sum() < 48


def test_none_leaves_images_alone(data):
  images, epoch, position = batch()

  np.testing.assert_array_equal(run(data, images, KEY, epoch, position), images)


def test_draws_depend_on_key_epoch_and_position_not_on_the_batch(data):
  data.augment = 'pad_crop_flip'
  images, epoch, position = batch()
  whole = run(data, images, KEY, epoch, position)
  turned = np.roll(np.arange(64), 7)[:20]

  part = run(data, images[turned], KEY, epoch[turned], position[turned])
  np.testing.assert_array_equal(part, whole[turned])
  for other in (
    run(data, images, KEY, epoch + 1, position),
    run(data, images, KEY, epoch, position + 64),
    run(data, images, jax.random.key(6), epoch, position),
  ):
    assert (other != whole).any((1, 2, 3)).mean() > 0.8


def erased(images, epoch, position, probability=1.0, key=KEY):
  """The boxes (top, bottom, left, right) that erasing sets to zero, int [n, 4]; how many images have one."""
  ones = jnp.ones((len(epoch), *images, 2))
  found = np.asarray(jax.jit(lambda *a: augment.erase(*a, probability))(ones, key, epoch, position))
  boxes = []
  for pil_image in found:
    assert ((pil_image == 0) | (pil_image == 1)).all()
    assert (pil_image[..., 0] == pil_image[..., 1]).all()
    rows, columns = (np.flatnonzero((pil_image[..., 0] == 0).any(axis)) for axis in (1, 0))
    if len(rows):
      box = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
      assert not pil_image[box[0] : box[1], box[2] : box[3]].any()
      boxes.append(box)
  return np.array(boxes), len(boxes) / len(found)


def test_erased_boxes_have_area_and_ratio_in_range():
  """On images so large that rounding to whole pixels hardly matters and nearly every first box fits."""
  boxes, fraction = erased((100, 120), jnp.zeros(1000, jnp.int32), jnp.arange(1000, dtype=jnp.int32))
  top, bottom, left, right = boxes.T
  area, ratio = (bottom - top) * (right - left) / 12_000, (bottom - top) / (right - left)

  assert fraction == 1.0
  assert 0.018 < area.min() < 0.025
  assert 0.31 < area.max() < 0.34
  assert abs(area.mean() - 0.175) < 0.01
  assert 0.28 < ratio.min() < 0.33
  assert 3.0 < ratio.max() < 3.5
  assert abs(np.log(ratio).mean()) < 0.08
  # Places are uniform where the box can be.
  assert abs((top / (100 - (bottom - top))).mean() - 0.5) < 0.03
  assert abs((left / (120 - (right - left))).mean() - 0.5) < 0.03
  assert (top == 0).any()
  assert (bottom == 100).any()


@pytest.mark.thorough
def test_a_box_is_smaller_than_its_image_both_ways():
  boxes, fraction = erased((30, 8), jnp.zeros(2000, jnp.int32), jnp.arange(2000, dtype=jnp.int32))
  assert fraction == 1.0
  assert (boxes[:, 3] - boxes[:, 2]).max() == 7
  # Where no box fits nothing is erased.
  assert erased((1, 8), jnp.zeros(50, jnp.int32), jnp.arange(50, dtype=jnp.int32))[1] == 0.0


@pytest.mark.thorough
def test_erasing_has_its_probability():
  _, fraction = erased((16, 16), jnp.zeros(4000, jnp.int32), jnp.arange(4000, dtype=jnp.int32), probability=0.3)
  assert abs(fraction - 0.3) < 3.3 * np.sqrt(0.3 * 0.7 / 4000)


@pytest.mark.thorough
def test_erasing_depends_on_key_epoch_and_position_not_on_the_batch():
  epoch, position = jnp.zeros(64, jnp.int32), jnp.arange(64, dtype=jnp.int32)
  whole, _ = erased((16, 16), epoch, position)
  turned = np.roll(np.arange(64), 7)[:20]
  np.testing.assert_array_equal(erased((16, 16), epoch[turned], position[turned])[0], whole[turned])
  for others in ((epoch + 1, position), (epoch, position + 64), (epoch, position, 1.0, jax.random.key(6))):
    assert (erased((16, 16), *others)[0] != whole).any(1).mean() > 0.8


def test_what_is_erased_is_the_mean(data):
  data.erasing = 1.0
  images, epoch, position = batch(32, 12, 12)
  preprocess = jax.jit(augment.make_preprocess(data, (0.4, 0.5, 0.6), (0.25,) * 3, jnp.float32))
  trained = np.asarray(preprocess({'image': images, 'epoch': epoch, 'position': position}, KEY))
  plain = np.asarray(preprocess({'image': images}, None))
  gone = (trained == 0).all(-1)

  assert 0.02 < gone.mean() < 0.33
  np.testing.assert_allclose(trained[~gone], plain[~gone], rtol=1e-6)


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_normalize(dtype):
  images, _, _ = batch(4)
  mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
  found = augment.normalize(images, mean, std, dtype)
  expected = (np.asarray(images, np.float64) / 255 - mean) / std

  assert found.dtype == dtype
  np.testing.assert_allclose(
    found.astype(jnp.float32), expected, rtol=1e-6 if dtype == jnp.float32 else 8e-3, atol=1e-6
  )


def test_preprocess_augments_only_with_a_key(data):
  data.augment = 'pad_crop_flip'
  images, epoch, position = batch(8)
  preprocess = jax.jit(augment.make_preprocess(data, (0.0,) * 3, (1.0,) * 3, jnp.float32))

  evaluated = preprocess({'image': images}, None)
  np.testing.assert_allclose(evaluated * 255, images, rtol=1e-6)
  trained = preprocess({'image': images, 'epoch': epoch, 'position': position}, KEY)
  expected = run(data, images, KEY, epoch, position)
  np.testing.assert_allclose(trained * 255, expected, rtol=1e-6, atol=1e-5)
