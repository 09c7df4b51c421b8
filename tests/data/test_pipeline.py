import logging
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from dnt import errors
from dnt.data import examples, order, pipeline, resident, stream
from dnt.data.transforms import augment
from dnt.data.transforms import images as images_lib
from dnt.parallel import mesh as meshes
from dnt.training import open_options
from tests.data import loading

pytestmark = pytest.mark.usefixtures('eight_devices')

COUNT, BATCH = 13, 8
# Steps in the first epoch, over its end, at a later place, and back at the start.
STEPS = (0, 1, 2, 40, 41, 0)


@pytest.fixture
def config(tiny):
  """Thirteen synthetic 8x8 images, cropped and mirrored, in batches of eight; streams are read in this process."""
  tiny.data.synthetic_examples = COUNT
  tiny.data.augment = 'pad_crop_flip'
  tiny.data.workers = 0
  tiny.data.update(pipeline.DEFAULTS)
  tiny.train.batch_size = tiny.eval.batch_size = BATCH
  return tiny


@pytest.fixture(scope='module')
def mesh():
  from dnt import config

  return meshes.make_mesh(config.default().mesh)


def load(config, split='train'):
  return loading.load(config.data, split, config.seed)


def batches(loader, steps, finish=lambda batch: batch):
  """What the program inside jit gets at each step, on the host."""
  step_fn = jax.jit(lambda arrays, step: finish(loader.batch_at(arrays, step)))
  try:
    return [jax.device_get(step_fn(loader.arrays(step, 1), step)) for step in steps]
  finally:
    loader.close()


def assert_same(first, second):
  for a, b in zip(first, second, strict=True):
    assert a.keys() == b.keys()
    for name in a:
      assert a[name].dtype == b[name].dtype
      np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.mark.parametrize('placement', ['device', 'stream'])
def test_batches_follow_the_order_of_each_epoch_and_drop_nothing(config, mesh, placement):
  config.data.placement = placement
  source = load(config)
  found = batches(pipeline.make_train_loader(config, source, mesh), range(COUNT))

  visits = np.concatenate([order.order(config.seed, epoch, COUNT) for epoch in range(BATCH)])
  for name, expected in (
    ('image', source.images[visits]),
    ('label', source.labels[visits]),
    ('epoch', np.repeat(np.arange(BATCH), COUNT)),
    ('position', np.tile(np.arange(COUNT), BATCH)),
  ):
    np.testing.assert_array_equal(np.concatenate([batch[name] for batch in found]), expected, err_msg=name)


@pytest.mark.parametrize('image_size', [8, 12])
def test_streamed_images_are_the_resident_ones_bit_for_bit(config, mesh, image_size):
  """Cropped, mirrored and normalized; also when they are resized on the way."""
  source = load(config)
  config.data.image_size = image_size
  preprocess = augment.make_preprocess(config.data, *pipeline.statistics(config.data, source), jnp.float32)

  def finish(batch):
    return batch | {'image': preprocess(batch, jax.random.key(3))}

  found = {}
  for placement in ('device', 'stream'):
    config.data.placement = placement
    found[placement] = batches(pipeline.make_train_loader(config, source, mesh), STEPS, finish)
  assert_same(found['device'], found['stream'])
  assert found['device'][0]['image'].shape == (BATCH, image_size, image_size, 3)


@pytest.mark.parametrize('placement', ['device', 'stream'])
def test_the_number_of_devices_changes_nothing(config, mesh, placement):
  config.data.placement = placement
  source = load(config)
  one = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), mesh.axis_names, axis_types=mesh.axis_types)

  assert_same(*(batches(pipeline.make_train_loader(config, source, m), STEPS) for m in (mesh, one)))
  assert_same(*(batches(pipeline.make_eval_loader(config, source, m), (0, 1)) for m in (mesh, one)))


@pytest.mark.parametrize('placement', ['device', 'stream'])
def test_batches_lie_split_over_the_devices(config, mesh, placement):
  config.data.placement = placement
  loader = pipeline.make_train_loader(config, load(config), mesh)
  batch = jax.jit(loader.batch_at)(loader.arrays(0, 1), 0)
  loader.close()

  for value in batch.values():
    assert value.sharding.is_equivalent_to(meshes.batch_sharding(mesh), value.ndim)


@pytest.mark.parametrize('placement', ['device', 'stream'])
def test_shapes_are_known_before_any_image_is_read(config, mesh, placement):
  config.data.placement = placement
  for make in (pipeline.make_train_loader, pipeline.make_eval_loader):
    loader = make(config, load(config), mesh)
    known, arrays = loader.shapes(), loader.arrays(0, 1)
    loader.close()
    assert known.keys() == arrays.keys()
    for name, array in arrays.items():
      assert (known[name].shape, known[name].dtype) == (array.shape, array.dtype), name
      assert known[name].sharding.is_equivalent_to(array.sharding, array.ndim), name


@pytest.mark.parametrize('placement', ['device', 'stream'])
@pytest.mark.parametrize(('split', 'steps'), [('train', 2), ('train[:8]', 1), ('train[:3]', 1)])
def test_evaluation_visits_each_example_once_in_order(config, mesh, placement, split, steps):
  config.data.placement = placement
  source = load(config, split)
  loader = pipeline.make_eval_loader(config, source, mesh)
  assert loader.steps == steps
  found = batches(loader, [*range(steps), *range(steps)])  # evaluated twice, as between epochs

  for passed in (found[:steps], found[steps:]):
    mask = np.concatenate([batch['mask'] for batch in passed])
    np.testing.assert_array_equal(mask, np.arange(steps * BATCH) < len(source))
    for name, expected in (('image', source.images), ('label', source.labels)):
      values = np.concatenate([batch[name] for batch in passed])
      np.testing.assert_array_equal(values[mask], expected)
      assert not values[~mask].any()


def test_large_images_are_cropped_at_random_to_train_and_at_the_center_to_evaluate(
  config, mesh, class_folders, make_image
):
  from dnt.data.transforms import images

  config.data.source = f'folder:{class_folders({"train/ant": 5, "train/bee": 4, "val/ant": 3})}'
  config.data.augment, config.data.image_size = 'resized_crop_flip', 10
  train, val = load(config), load(config, 'val')
  trained = batches(pipeline.make_train_loader(config, train, mesh), [1])[0]
  evaluated = batches(pipeline.make_eval_loader(config, val, mesh), [0])[0]

  for row in range(BATCH):
    epoch, position = divmod(BATCH + row, 9)
    image, label = train[order.order(config.seed, epoch, 9)[position]]
    generator = order.generator(config.seed, order.CROP, epoch, position)
    expected = images.random_resized_crop(image, generator, (10, 10), config.data.resized_crop_min_area)
    np.testing.assert_array_equal(trained['image'][row], expected)
    assert trained['label'][row] == label
  for row in range(3):
    expected = images.resize_center_crop(val[row][0], None, (10, 10), config.data.eval_crop)
    np.testing.assert_array_equal(evaluated['image'][row], expected)


def by_hand(image, resize, crop):
  """Ten pixels a side, with Pillow: all of the image, or torchvision's Resize and CenterCrop."""
  if resize == 'squash':
    return np.asarray(image.resize((10, 10), Image.Resampling.BILINEAR))
  least = int(10 / crop)
  image = image.resize([least * side // min(image.size) for side in image.size], Image.Resampling.BILINEAR)
  left, top = (round((side - 10) / 2) for side in image.size)
  return np.asarray(image.crop((left, top, left + 10, top + 10)))


@pytest.mark.parametrize('resize', ['center_crop', 'squash'])
@pytest.mark.parametrize('augment', ['none', 'resized_crop_flip'])
def test_the_augmentation_resizes_to_train_and_eval_resize_to_evaluate(config, mesh, class_folders, augment, resize):
  config.data.source = f'folder:{class_folders({"train/ant": 5, "train/bee": 4, "val/ant": 3})}'
  config.data.update({'augment': augment, 'image_size': 10, 'eval_crop': 0.7, 'eval_resize': resize})
  train, val = load(config), load(config, 'val')
  evaluated = batches(pipeline.make_eval_loader(config, val, mesh), [0])[0]
  for row, path in enumerate(val.store.paths):
    expected = by_hand(Image.open(path).convert('RGB'), resize, 0.7)
    np.testing.assert_array_equal(evaluated['image'][row], expected)
  trained = batches(pipeline.make_train_loader(config, train, mesh), [0])[0]
  config.data.eval_resize = None
  assert_same([trained], batches(pipeline.make_train_loader(config, train, mesh), [0]))
  squashed = [by_hand(Image.open(path).convert('RGB'), 'squash', 1) for path in train.store.paths]
  is_squashed = any(np.array_equal(trained['image'][0], each) for each in squashed)
  assert is_squashed == (augment == 'none')


@pytest.mark.parametrize('placement', ['device', 'stream'])
@pytest.mark.parametrize('resize', ['center_crop', 'squash'])
def test_images_in_memory_are_resized_for_evaluation_alone(config, mesh, placement, resize):
  config.data.update({'placement': placement, 'eval_resize': resize, 'eval_crop': 0.8, 'image_size': 8})
  source = load(config)
  config.data.image_size = 10
  made = pipeline.make_eval_loader(config, source, mesh)
  assert isinstance(made, {'device': resident.EvalLoader, 'stream': stream.EvalLoader}[placement])
  evaluated = batches(made, [0])[0]['image']
  for row in range(BATCH):
    np.testing.assert_array_equal(evaluated[row], by_hand(Image.fromarray(source.images[row]), resize, 0.8))
  config.data.augment = 'none'
  trained = batches(pipeline.make_train_loader(config, source, mesh), [0])[0]['image']
  for row, place in enumerate(order.order(config.seed, 0, COUNT)[:BATCH]):
    np.testing.assert_array_equal(trained[row], by_hand(Image.fromarray(source.images[place]), 'squash', 1))


def test_a_center_crop_of_images_of_the_right_size_still_cuts_the_border(config, mesh):
  config.data.update({'eval_resize': 'center_crop', 'eval_crop': 0.5})
  source = load(config)
  found = batches(pipeline.make_eval_loader(config, source, mesh), [0])[0]['image'][0]
  large = Image.fromarray(source.images[0]).resize((16, 16), Image.Resampling.BILINEAR)
  np.testing.assert_array_equal(found, large.crop((4, 4, 12, 12)))


@pytest.mark.parametrize(
  ('augment', 'resize', 'crop', 'shape', 'apart'),
  [
    ('none', 'center_crop', 0.875, (None, None, 3), True),
    ('pad_crop_flip', 'center_crop', 0.875, (32, 32, 3), True),
    ('none', 'center_crop', 1.0, (None, None, 3), True),
    ('none', 'center_crop', 1.0, (32, 40, 3), True),
    ('none', 'center_crop', 1.0, (32, 32, 3), False),
    ('none', 'squash', 0.875, (None, None, 3), False),
    ('none', None, 0.875, (None, None, 3), False),
    ('resized_crop_flip', 'center_crop', 0.875, (None, None, 3), False),
  ],
)
def test_training_may_squash_what_evaluation_crops(data, augment, resize, crop, shape, apart):
  data.update({'augment': augment, 'eval_resize': resize, 'eval_crop': crop})
  assert pipeline.resizes_apart(data, shape) == apart


def test_images_of_differing_sizes_need_a_size(config, mesh, class_folders):
  config.data.source = f'folder:{class_folders({"ant": 3, "bee": 3})}'
  config.data.image_size = None
  source = load(config)

  for make in (pipeline.make_train_loader, pipeline.make_eval_loader):
    with pytest.raises(errors.InputError, match=r'size.* config\.data\.image_size\b.* 224'):
      make(config, source, mesh)


def test_placement_picks_the_loader(config, mesh):
  source = load(config)
  loaders = {}
  for placement in ('auto', 'device', 'stream'):
    config.data.placement = placement
    loaders[placement] = type(pipeline.make_train_loader(config, source, mesh))

  assert loaders == {'auto': resident.TrainLoader, 'device': resident.TrainLoader, 'stream': stream.TrainLoader}


def of(images):
  return examples.in_memory('test', 'train', images, np.zeros(len(images)), ('a', 'b'))


def test_statistics_are_those_of_float64(data):
  images = np.random.default_rng(0).integers(0, 200, (5000, 4, 3, 3), np.uint8) + np.array([0, 20, 55], np.uint8)
  mean, std = pipeline.statistics(data, of(images))

  np.testing.assert_allclose(mean, (images / 255).mean((0, 1, 2)), rtol=1e-12)
  np.testing.assert_allclose(std, (images / 255).std((0, 1, 2)), rtol=1e-12)


@pytest.mark.parametrize('seconds', [20.0, 0.1])
def test_statistics_of_a_streamed_set_decode_images_at_once_and_say_so_if_it_takes_long(
  config, class_folders, slow_count, caplog, monkeypatch, seconds
):
  config.data.source, config.data.image_size = f'folder:{class_folders({"train/a": 8, "train/b": 4, "val/a": 1})}', 8
  open_options.fill_defaults(config.data)
  source, both, to_array = load(config), threading.Barrier(2, timeout=2), images_lib.to_array
  slow_count(seconds)
  monkeypatch.setattr(images_lib, 'to_array', lambda image: both.wait() < 2 and to_array(image))
  with caplog.at_level(logging.INFO, 'dnt'):
    pipeline.statistics(config.data, source)
  assert ('mean and standard deviation 1/12' in caplog.text) == (seconds > 10)


def test_given_statistics_are_taken(data):
  images = np.zeros((2, 2, 2, 3), np.uint8)
  data.mean, data.std = (0.1, 0.2, 0.3), (1.0, 2.0, 3.0)

  assert pipeline.statistics(data, of(images)) == ((0.1, 0.2, 0.3), (1.0, 2.0, 3.0))


@pytest.mark.parametrize(
  ('mean', 'std', 'message'),
  [
    ((0.5,), (), 'mean .*std .*together'),
    ((0.5,) * 2, (0.2,) * 2, r'mean=\(0\.5, 0\.5\) must hold 1 or 3 numbers'),
    ((0.5,) * 3, (0.2,), r'std=\(0\.2,\) must hold 3 numbers, as config\.data\.mean'),
    ((), (), r'channel of test .*constant.* config\.data\.mean'),
  ],
)
def test_statistics_that_do_not_suit_are_refused(data, mean, std, message):
  data.mean, data.std = mean, std
  with pytest.raises(errors.InputError, match=message):
    pipeline.statistics(data, of(np.full((2, 2, 2, 3), 7, np.uint8)))


@pytest.mark.parametrize('most', [4, 100])
def test_statistics_of_a_streamed_set_are_those_of_images_across_the_set(config, class_folders, monkeypatch, most):
  monkeypatch.setattr(pipeline, 'MEASURED', most)
  config.data.source, config.data.image_size = (
    f'folder:{class_folders({"train/ant": 8, "train/bee": 4, "val/ant": 1})}',
    8,
  )
  open_options.fill_defaults(config.data)
  source = load(config)
  mean, std = pipeline.statistics(config.data, source)

  places = [0, 3, 7, 11] if most == 4 else range(12)
  images = np.stack([source[place][0].resize((8, 8), Image.Resampling.BILINEAR) for place in places])
  np.testing.assert_allclose(mean, (images / 255).mean((0, 1, 2)), rtol=1e-12)
  np.testing.assert_allclose(std, (images / 255).std((0, 1, 2)), rtol=1e-12)
