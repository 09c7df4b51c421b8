import pytest

from dnt import errors
from dnt.data import placement

SMALL, LARGE = (32, 32, 3), (300, 300, 3)


def test_auto_decides_by_the_bytes_at_the_final_size(data):
  count = placement.RESIDENT_BYTES // (32 * 32 * 3)

  assert placement.on_device(data, count, SMALL)
  assert not placement.on_device(data, count + 1, SMALL)
  data.image_size = 64
  assert not placement.on_device(data, count, SMALL)
  assert placement.on_device(data, count // 4, SMALL)


def test_auto_decides_by_the_bytes_that_the_host_decodes_too(data):
  data.image_size = 64
  count = placement.RESIDENT_BYTES // (256 * 256 * 3)
  assert placement.on_device(data, count, (256, 256, 3))
  assert not placement.on_device(data, count + 1, (256, 256, 3))
  assert not placement.on_device(data, 31_500, (256, 256, 3)), '6.2 GB, of which 0.4 GB would remain'
  data.placement = 'device'
  assert placement.on_device(data, 31_500, (256, 256, 3))


def test_the_limit_is_one_gibibyte():
  assert placement.RESIDENT_BYTES == 1 << 30


def test_stream_and_device_are_obeyed(data):
  data.placement = 'stream'
  assert not placement.on_device(data, 1, SMALL)
  data.placement = 'device'
  assert placement.on_device(data, 10**6, LARGE)


def test_images_that_differ_in_size_or_are_cropped_at_random_on_the_host_stream(data):
  assert not placement.on_device(data, 1, (None, None, 3))
  data.augment = 'resized_crop_flip'
  assert not placement.on_device(data, 1, SMALL, train=True)
  for data.eval_resize in ('center_crop', 'squash'):  # once for all epochs
    assert placement.on_device(data, 1, SMALL)


@pytest.mark.parametrize('policy', ['rand_augment', 'trivial_augment'])
def test_what_is_trained_on_under_a_policy_streams(data, policy):
  data.policy = policy
  assert not placement.on_device(data, 1, SMALL, train=True)
  assert placement.on_device(data, 1, SMALL)
  data.placement = 'device'
  for train in (True, False):
    with pytest.raises(errors.InputError, match=f"digits.* config.data.policy='{policy}' .*host"):
      placement.on_device(data, 1, SMALL, train)


@pytest.mark.parametrize(
  ('shape', 'augment', 'reason'),
  [((None, None, 3), 'none', 'size'), (SMALL, 'resized_crop_flip', 'host')],
)
def test_device_is_refused_where_it_cannot_be(data, shape, augment, reason):
  data.placement, data.augment = 'device', augment
  with pytest.raises(errors.InputError, match=f"placement='device' .*digits.* {reason}.* 'auto'"):
    placement.on_device(data, 1, shape)
