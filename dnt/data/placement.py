"""Decides where the images of a split live: on the device, or streamed from the host."""

from dnt import errors
from dnt.config import typed
from dnt.data import examples

# A split lives on the device if its images take at most this many bytes there, at their final size, and at most as many
# in the memory of the host, where a source decodes them at the size that they have.
RESIDENT_BYTES = 2**30


def on_device(config: typed.Data, count: int, shape: examples.Shape, train: bool = False) -> bool:
  """Returns whether `config.placement` puts `count` images of this shape on the device.

  Args:
    config: the `data` section of the config.
    count: number of images in the split.
    shape: (H, W, C) of the images in the source.
    train: whether the images are for training, which applies `config.augment` and `config.policy`; evaluation does not.

  Raises:
    errors.InputError: placement='device' for images that cannot live there.
  """
  if config.placement == 'stream':
    return False
  reason = None
  if None in shape:
    reason = 'its images differ in size'
  elif config.augment == 'resized_crop_flip' and (train or config.placement == 'device'):
    reason = "config.data.augment='resized_crop_flip' crops on the host"
  elif config.policy != 'none' and (train or config.placement == 'device'):
    reason = f'config.data.policy={config.policy!r} runs on the host'
  if config.placement == 'device' and reason:
    raise errors.InputError(f"config.data.placement='device' is not possible for {config.source}: {reason}; use 'auto'")
  if config.placement == 'device' or reason:
    return not reason
  height, width, channels = shape
  assert height is not None and width is not None  # images that differ in size have already raised
  pixels = max(height * width, (config.image_size or 0) ** 2)
  return count * pixels * channels <= RESIDENT_BYTES
