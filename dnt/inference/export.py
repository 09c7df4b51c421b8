"""Exports a trained network for other programs: as StableHLO, or as tensors with torchvision's names or Flax paths."""

import logging
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from dnt import errors, inference, trees
from dnt.config import typed
from dnt.data.transforms import images
from dnt.models import custom, layouts
from dnt.weights import names, preprocessing

_log = logging.getLogger(__name__)
PLATFORMS = ('cpu', 'cuda', 'tpu')  # we lower the program for all of them, on any machine
_ANY_NETWORK = '--format=flax_safetensors (variables by their Flax paths) and --format=stablehlo (a program)'


def stablehlo(network: inference.Network) -> bytes:
  """Returns the network, its weights and its normalization as one program, for `jax.export.deserialize`.

  The program takes images uint8 [b, H, W, C] for any b, and returns float32 logits [b, classes].

  Args:
    network: the network, with its variables on the host.

  Raises:
    errors.InputError: a user's own module that does not work for any number of images, or for one of `PLATFORMS`.
  """

  def logits(images):
    return network.model.apply(network.variables, network.preprocess(images), train=False)

  (batch,) = export.symbolic_shape('b')
  images = jax.ShapeDtypeStruct((batch, *network.image_shape), jnp.uint8)
  try:
    return bytes(export.export(jax.jit(logits), platforms=PLATFORMS)(images).serialize())
  except Exception as error:  # what meets a symbol in place of a number may raise anything
    name = network.config.model.name
    if ':' not in name or isinstance(error, errors.InputError):
      raise
    raise errors.InputError(
      f'{name} cannot be exported: it must work for any number of images, so that x.shape[0] is no number in Python, '
      f'and on {", ".join(PLATFORMS)}; {custom.place_of(error, network.model)}{errors.first_line(error)}'
    ) from error


def stablehlo_description(network: inference.Network) -> dict[str, Any]:
  """Returns a JSON description for callers of the program: its input, output, preprocessing and classes."""
  return {
    'input': _input(network, 'uint8'),
    'output': {'shape': ['b', len(network.class_names)], 'dtype': 'float32', 'values': 'logits'},
    # mean and std are listed for information; the program already applies them.
    'preprocessing': _preprocessing(network, normalized_inside=True),
    'platforms': list(PLATFORMS),
    'class_names': list(network.class_names),
  }


def flax_tensors(network: inference.Network) -> dict[str, np.ndarray]:
  """Returns the unrolled variables by their Flax paths ('params/stem/conv/kernel'), floating ones as float32.

  Args:
    network: the network, with its variables on the host.
  """

  def tensor(leaf):
    dtype = np.float32 if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf.dtype
    return np.array(leaf, dtype, order='C')  # safetensors writes the memory of an array as it lies

  return {path: tensor(leaf) for path, leaf in trees.flatten(_unrolled(network)).items()}


def flax_description(network: inference.Network) -> dict[str, Any]:
  """Returns a JSON description for readers of `flax_tensors`: names, network, input, preprocessing and classes."""
  return {
    'names': 'Flax paths, joined by /: the collection (params or batch_stats), the modules and the variable',
    'model': network.config.model.to_dict(),
    'input': _input(network, 'float32'),
    'preprocessing': _preprocessing(network, normalized_inside=False),
    'class_names': list(network.class_names),
  }


def torch_tensors(network: inference.Network) -> dict[str, np.ndarray]:
  """Returns the variables as float32 tensors with torchvision's names, which timm shares.

  Args:
    network: the network, with its variables on the host.

  Raises:
    errors.InputError: torchvision does not have this network; the message lists the differences.
  """
  return names.from_variables(_unrolled(network), _torch_network(network.config.model))


def timm_config(network: inference.Network) -> dict[str, Any]:
  """Returns the content of timm's `config.json`, which belongs in the folder of the tensors.

  Raises:
    errors.InputError: as in `torch_tensors`.
  """
  known = _torch_network(network.config.model)
  architecture = f'{known.model["name"]}{known.model["depth"]}'
  classes = len(network.class_names)
  ends = {'first_conv': known.layers['stem/conv'], 'classifier': known.layers['head/dense']}
  return {
    'architecture': architecture,
    'num_classes': classes,
    'label_names': list(network.class_names),
    'pretrained_cfg': {'architecture': architecture, 'num_classes': classes, **_image(network), **ends},
  }


def say_decoding(network: inference.Network) -> None:
  """Logs a line if the run decodes images in another way than timm, for which `timm_config` has no words."""
  how = images.decoding(network.config.data)
  ways = ['turned as their EXIF orientation says (config.data.exif_rotation)'] if how.rotate else []
  ways += [f'16-bit values as {how.bits} bits (config.data.image_bits)'] if how.bits != images.USUAL.bits else []
  ways += ['each cut to its box (config.data.crop_to_box)'] if network.config.data.crop_to_box else []
  if ways:
    _log.info(f'config.json has no words for how the run reads images: {", ".join(ways)}; read them so')


def _torch_network(model: typed.Model) -> names.Network:
  known = names.networks('torch')
  fitting = [each for each in known if (each.model['name'], each.model['depth']) == (model.name, model.depth)]
  if not fitting:
    titles = ', '.join(each.title for each in known)
    named = f'{model.name} of depth {model.depth}' if model.depth else model.name
    raise errors.InputError(
      f'torchvision has no {named}; --format=safetensors is for {titles}; for any network there are {_ANY_NETWORK}'
    )
  wanted = names.differences(fitting[0].model, model)
  if wanted:
    raise errors.InputError(
      f'this network differs from {fitting[0].title}, whose names it would get: that one has {wanted}; '
      f'for any network there are {_ANY_NETWORK}'
    )
  return fitting[0]


def _unrolled(network: inference.Network) -> dict[str, Any]:
  return layouts.to_unrolled(network.variables, layouts.scanned_rows(network.variables['params']))


def _input(network: inference.Network, dtype: str) -> dict[str, Any]:
  channels = 'gray' if network.image_shape[-1] == 1 else 'red first'
  return {'shape': ['b', *network.image_shape], 'dtype': dtype, 'channels': channels}


def _preprocessing(network: inference.Network, normalized_inside: bool) -> dict[str, Any]:
  """Returns how images are read, resized and normalized, the last either inside of what is exported or before it."""
  image, how, crop = _image(network), images.decoding(network.config.data), network.config.data.crop_to_box
  normalization = {'normalized_inside': normalized_inside, 'mean': image.pop('mean'), 'std': image.pop('std')}
  return {'exif_rotation': how.rotate, 'image_bits': how.bits, 'crop_to_box': crop} | image | normalization


def _image(network: inference.Network) -> dict[str, Any]:
  """Returns the evaluation preprocessing of an image as timm's config values."""
  return preprocessing.to_timm(preprocessing.of_run(network.config.data), network.image_shape)
