import functools
import math
import pickle

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from dnt.data import order, pipeline, stream
from dnt.data.transforms import images, policies
from dnt.parallel import mesh as meshes
from tests.data import loading

pytestmark = pytest.mark.usefixtures('eight_devices')


def operate(pil_image, operation, magnitude):
  return images.to_array(policies.operate(images.from_array(pil_image), operation, magnitude))


def mapped(pil_image, source):
  """The image whose pixel at (x, y) is that at `source(x, y)`, counted from the upper left corner; else black."""
  height, width = pil_image.shape[:2]
  expected = np.zeros_like(pil_image)
  for row in range(height):
    for column in range(width):
      x, y = source(column + 0.5, row + 0.5)
      if 0 <= x < width and 0 <= y < height:
        expected[row, column] = pil_image[int(y), int(x)]
  return expected


def turned(degrees, height, width):
  """Counter-clockwise about the center."""
  sine, cosine = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))

  def source(x, y):
    dx, dy = x - width / 2, y - height / 2
    return width / 2 + cosine * dx - sine * dy, height / 2 + sine * dx + cosine * dy

  return source


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('sign', [1, -1])
def test_geometry_takes_the_nearest_pixel_and_black_beyond(make_image, channels, sign):
  original = make_image(13, 17, channels)
  shear, angle = 0.273 * sign, 21.7 * sign
  for operation, magnitude, source in (
    ('ShearX', shear, lambda x, y: (x + shear * y, y)),
    ('ShearY', shear, lambda x, y: (x, y + shear * x)),
    ('TranslateX', 3.9 * sign, lambda x, y: (x - 3 * sign, y)),
    ('TranslateY', 2.2 * sign, lambda x, y: (x, y - 2 * sign)),
    ('Rotate', angle, turned(angle, 13, 17)),
  ):
    np.testing.assert_array_equal(operate(original, operation, magnitude), mapped(original, source), operation)


def test_a_quarter_turn_is_counter_clockwise(make_image):
  original = make_image(9, 9)
  np.testing.assert_array_equal(operate(original, 'Rotate', 90.0), np.rot90(original))


def luminance(pil_image):
  """ITU-R 601-2, in the integers that Pillow reckons in."""
  if pil_image.shape[-1] == 1:
    return pil_image[..., 0].astype(int)
  return (pil_image @ np.array([19595, 38470, 7471]) + 0x8000) >> 16


def blended(degenerate, pil_image, factor):
  """From a degenerate image (factor 0) through the image (1) and beyond, cut to bytes."""
  degenerate = np.broadcast_to(degenerate, pil_image.shape).astype(np.float32)
  return np.clip(degenerate + np.float32(factor) * (pil_image - degenerate), 0, 255).astype(np.uint8)


def smoothed(pil_image):
  """The mean of 3 x 3 pixels, that in the middle five times; the border stays."""
  height, width = pil_image.shape[:2]
  total = 4.0 * pil_image[1:-1, 1:-1]
  for row in range(3):
    for column in range(3):
      total += pil_image[row : height - 2 + row, column : width - 2 + column]
  result = pil_image.copy()
  result[1:-1, 1:-1] = np.floor(total / 13 + 0.5)
  return result


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('magnitude', [0.27, -0.27, 0.9, -0.9])
def test_enhancements_blend_with_a_degenerate_image(make_image, channels, magnitude):
  original, factor = make_image(13, 17, channels), 1 + magnitude
  gray = luminance(original)
  for operation, degenerate in (
    ('Brightness', 0),
    ('Color', gray[..., None]),
    ('Contrast', int(gray.mean() + 0.5)),
    ('Sharpness', smoothed(original)),
  ):
    found = operate(original, operation, magnitude)
    # One off where the product is whole but for rounding.
    np.testing.assert_allclose(found.astype(int), blended(degenerate, original, factor), atol=1, err_msg=operation)
    assert (found == blended(degenerate, original, factor)).mean() > 0.99, operation
    np.testing.assert_array_equal(operate(original, operation, 0.0), original, operation)


@pytest.mark.parametrize('channels', [1, 3])
def test_color_operations_map_each_value(make_image, channels):
  original = make_image(13, 17, channels) // 2 + 40
  np.testing.assert_array_equal(operate(original, 'Identity', 0.0), original)
  np.testing.assert_array_equal(operate(original, 'Posterize', 1.2), original & 0b11111110)
  np.testing.assert_array_equal(operate(original, 'Posterize', 6), original & 0b11000000)
  solarized = np.where(original < 127.5, original, 255 - original)
  np.testing.assert_array_equal(operate(original, 'Solarize', 127.5), solarized)

  low, high = original.min((0, 1)).astype(float), original.max((0, 1))
  scale = 255 / (high - low)
  stretched = np.clip((original * scale - low * scale).astype(int), 0, 255)
  np.testing.assert_allclose(operate(original, 'AutoContrast', 0.0).astype(int), stretched, atol=1)

  equalized = np.empty_like(original)
  for channel in range(channels):
    counts = np.bincount(original[..., channel].reshape(-1), minlength=256)
    step = (counts.sum() - counts[counts > 0][-1]) // 255
    table = (step // 2 + np.cumsum(counts) - counts) // step if step else np.arange(256)
    equalized[..., channel] = table[original[..., channel]]
  np.testing.assert_array_equal(operate(original, 'Equalize', 0.0), equalized)


def test_equalize_evens_out_a_larger_image(make_image):
  """Where a step of the histogram is more than nothing."""
  original = make_image(60, 50)
  expected = np.asarray(ImageOps.equalize(Image.fromarray(original)))
  assert (expected != original).any()
  np.testing.assert_array_equal(operate(original, 'Equalize', 0.0), expected)


def test_gray_images_keep_their_color(make_image):
  original = make_image(8, 8, 1)
  np.testing.assert_array_equal(operate(original, 'Color', 0.9), original)


@pytest.fixture
def chosen(monkeypatch):
  """Operations and magnitudes as they are asked for; nothing is done."""
  found = []
  monkeypatch.setattr(policies, 'operate', lambda image, *call: found.append(call) or image)
  return found


RAND = {'ShearX': 0.3, 'Rotate': 30.0, 'Brightness': 0.9, 'Color': 0.9, 'Contrast': 0.9, 'Sharpness': 0.9}
WIDE = {'ShearX': 0.99, 'Rotate': 135.0, 'Brightness': 0.99, 'Color': 0.99, 'Contrast': 0.99, 'Sharpness': 0.99}


def published(torch, strongest, translate, posterize):
  """By operation, the 31 magnitudes of torchvision's table, as `operate` takes them."""
  table = {operation: torch.linspace(0.0, most, 31) for operation, most in strongest.items()}
  table['ShearY'] = table['ShearX']
  table |= {f'Translate{axis}': torch.linspace(0.0, most, 31) for axis, most in zip('XY', translate, strict=True)}
  bits = 8 - (torch.arange(31) / (30 / posterize)).round().int()
  zeros = dict.fromkeys(('Identity', 'AutoContrast', 'Equalize'), torch.zeros(31))
  table |= {'Posterize': 8 - bits, 'Solarize': 255 - torch.linspace(255.0, 0.0, 31)} | zeros
  return {operation: values.double() for operation, values in table.items()}


def as_applied(operation, magnitude):
  """What an operation makes of its magnitude; a whole one that is less by rounding, as torch's 15.999999, is whole."""
  if operation.startswith('Translate'):
    return int(magnitude + 1e-5)
  return round(magnitude) if operation == 'Posterize' else magnitude


@pytest.mark.parametrize('size', [(8, 8), (32, 32), (224, 224), (331, 662), (97, 500)])
def test_rand_augments_magnitudes_are_torchvisions(torch_reference, chosen, size):
  translate = (150.0 / 331.0 * size[1], 150.0 / 331.0 * size[0])
  table = torch_reference(lambda torch: published(torch, RAND, translate, 4))
  image, generator, seen = Image.new('L', size[::-1]), np.random.default_rng(0), set()
  for level in range(31):
    del chosen[:]
    policies.rand_augment(image, generator, ops=60, magnitude=level)
    for operation, magnitude in chosen:
      seen.add(operation)
      expected = as_applied(operation, table[operation][level])
      assert as_applied(operation, abs(magnitude)) == pytest.approx(expected, rel=1e-6, abs=1e-6), operation
  assert seen == set(table)


def test_level_27_has_the_strengths_of_m_9_of_the_paper(chosen):
  """In the paper's code, M = 10 shears by 0.3, rotates by 30 degrees and changes a factor of 1 by 0.9."""
  policies.rand_augment(Image.new('L', (8, 8)), np.random.default_rng(0), ops=200, magnitude=27)
  found = {operation: abs(magnitude) for operation, magnitude in chosen}
  for operation, strength in {'ShearX': 0.27, 'ShearY': 0.27, 'Rotate': 27, 'Brightness': 0.81, 'Color': 0.81}.items():
    assert found[operation] == pytest.approx(strength)


def test_trivial_augments_magnitudes_are_torchvisions(torch_reference, chosen):
  table = torch_reference(lambda torch: published(torch, WIDE, (32.0, 32.0), 6))
  image, generator = Image.new('RGB', (8, 8)), np.random.default_rng(0)
  for _ in range(8000):
    policies.trivial_augment(image, generator)
  found = {operation: set() for operation in table}
  for operation, magnitude in chosen:
    found[operation].add(as_applied(operation, abs(magnitude)))
  for operation, values in table.items():
    expected = sorted({as_applied(operation, value) for value in values})
    np.testing.assert_allclose(sorted(found[operation]), expected, rtol=1e-6, atol=1e-6, err_msg=operation)


def test_every_operation_and_sign_comes_up_evenly(chosen):
  image, generator = Image.new('RGB', (8, 8)), np.random.default_rng(1)
  for _ in range(7000):
    policies.rand_augment(image, generator, ops=2, magnitude=9)
  counts = {operation: sum(each == operation for each, _ in chosen) for operation in policies.OPERATIONS}
  assert len(counts) == 14
  # Chi-squared, 13 degrees of freedom: 99.9 % lie below 34.5.
  assert sum((count - 1000) ** 2 / 1000 for count in counts.values()) < 34.5
  for operation, count in counts.items():
    negative = sum(each == operation and magnitude < 0 for each, magnitude in chosen)
    if operation in ('Identity', 'Posterize', 'Solarize', 'AutoContrast', 'Equalize'):
      assert not negative
    else:
      assert abs(negative - count / 2) < 3.3 * math.sqrt(count) / 2, operation


def test_operations_follow_one_another(make_image):
  """Two of the most visible ones, recomputed with Pillow from the draws."""
  original = Image.fromarray(make_image(16, 16))

  class Drawn:
    """Contrast, then ShearX with a negative sign."""

    def __init__(self):
      self.draws = iter([policies.OPERATIONS.index('Contrast'), 0, policies.OPERATIONS.index('ShearX'), 1])

    def integers(self, count):
      return next(self.draws)

  found = policies.rand_augment(original, Drawn(), ops=2, magnitude=10)
  image = ImageEnhance.Contrast(original).enhance(1.3)
  image = image.transform((16, 16), Image.Transform.AFFINE, (1, -0.1, 0, 0, 1, 0))
  np.testing.assert_array_equal(found, image)


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize(
  'policy', [functools.partial(policies.rand_augment, ops=3, magnitude=30), policies.trivial_augment]
)
def test_size_and_mode_stay(make_image, policy, channels):
  original = images.from_array(make_image(11, 7, channels))
  for position in range(40):
    found = policy(original, order.generator(0, order.CROP, 0, position))
    assert (found.size, found.mode) == (original.size, original.mode)


def first_batches(config, count, workers=0):
  config.data.workers = workers
  loader = pipeline.make_train_loader(config, loading.load(config.data, 'train', 0), meshes.make_mesh(config.mesh))
  assert isinstance(loader, stream.TrainLoader)
  try:
    return [np.asarray(loader.arrays(step, 1)['image']) for step in range(count)]
  finally:
    loader.close()


@pytest.mark.parametrize('policy', ['rand_augment', 'trivial_augment'])
def test_a_small_set_is_streamed_and_each_image_is_a_function_of_seed_epoch_and_position(tiny, policy):
  tiny.data.policy, tiny.data.synthetic_examples, tiny.train.batch_size = policy, 24, 16
  source = loading.load(tiny.data, 'train', 0)
  found = np.concatenate(first_batches(tiny, 3))
  transform = functools.partial(policies.rand_augment, ops=2, magnitude=9)
  if policy == 'trivial_augment':
    transform = policies.trivial_augment
  for place, pil_image in enumerate(found):
    epoch, position = divmod(place, 24)
    original, _ = source[order.order(tiny.seed, epoch, 24)[position]]
    expected = transform(original, order.generator(tiny.seed, order.CROP, epoch, position))
    np.testing.assert_array_equal(pil_image, expected)
  assert (found[:24] != found[24:]).any()


def test_a_policy_acts_on_the_resized_image(tiny, class_folders):
  folder = class_folders({'train/ant': 4, 'train/bee': 4, 'val/ant': 1})
  tiny.data.update({'source': f'folder:{folder}', 'image_size': 10, 'interpolation': 'bilinear'})
  tiny.data.update({'policy': 'rand_augment', 'rand_augment_ops': 4})
  tiny.train.batch_size = 8
  source, (found,) = loading.load(tiny.data, 'train', 0), first_batches(tiny, 1)
  for position, index in enumerate(order.order(tiny.seed, 0, 8)):
    small = source[index][0].resize((10, 10), Image.Resampling.BILINEAR)
    expected = policies.rand_augment(small, order.generator(tiny.seed, order.CROP, 0, position), ops=4, magnitude=9)
    np.testing.assert_array_equal(found[position], expected)


@pytest.mark.thorough
def test_the_number_of_workers_changes_nothing(tiny):
  tiny.data.policy, tiny.data.augment, tiny.data.interpolation = 'rand_augment', 'resized_crop_flip', 'bilinear'
  np.testing.assert_array_equal(first_batches(tiny, 3, workers=2), first_batches(tiny, 3))


def test_evaluation_knows_no_policy(tiny):
  mesh, split = meshes.make_mesh(tiny.mesh), loading.load(tiny.data, 'test', 0)
  tiny.data.policy, tiny.data.placement, tiny.data.workers = 'rand_augment', 'stream', 0
  loader = pipeline.make_eval_loader(tiny, split, mesh)
  found = np.asarray(loader.arrays(0, 1)['image'])
  loader.close()
  np.testing.assert_array_equal(found, split.images[:16])


def test_policies_can_be_sent_to_workers(data):
  for data.policy in ('rand_augment', 'trivial_augment'):
    assert pickle.loads(pickle.dumps(policies.make(data)))
  data.policy = 'none'
  assert policies.make(data) is None
