"""A trained network in forms that other programs run: StableHLO, and PyTorch's tensors by torchvision's names."""

from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax import export

from dnt import errors, inference
from dnt.models import depth
from dnt.weights import names, preprocessing

PLATFORMS = ('cpu', 'cuda', 'tpu')  # what a program is lowered for, wherever it is exported


def stablehlo(network: inference.Network) -> bytes:
  """The network with its weights and its normalization as one program, for `jax.export.deserialize`.

  The program takes pictures uint8 [b, H, W, C], any number of them, and returns float32 logits [b, classes].

  Args:
    network: with its variables on the host.
  """

  def logits(pictures):
    return network.model.apply(network.variables, network.preprocess(pictures), train=False)

  (batch,) = export.symbolic_shape('b')
  pictures = jax.ShapeDtypeStruct((batch, *network.image_shape), jnp.uint8)
  return bytes(export.export(jax.jit(logits), platforms=PLATFORMS)(pictures).serialize())


def stablehlo_description(network: inference.Network) -> dict[str, Any]:
  """What must be known to call the program, JSON: its input, how pictures come to it, its classes."""
  picture = _picture(network)
  # Normalization is in the program: its numbers are told, and not to be applied.
  told = {'normalized_inside': True, 'mean': picture.pop('mean'), 'std': picture.pop('std')}
  return {
    'input': {'shape': ['b', *network.image_shape], 'dtype': 'uint8', 'channels': 'red first'},
    'output': {'shape': ['b', len(network.class_names)], 'dtype': 'float32', 'values': 'logits'},
    'preprocessing': picture | told,
    'platforms': list(PLATFORMS),
    'class_names': list(network.class_names),
  }


def torch_tensors(network: inference.Network) -> dict[str, np.ndarray]:
  """The variables as torchvision names them, float32; timm's names are the same.

  Args:
    network: with its variables on the host.

  Raises:
    errors.InputError: a network that torchvision does not have; says in what it differs.
  """
  unrolled = depth.to_unrolled(network.variables, depth.scanned_rows(network.variables['params']))
  return names.from_variables(unrolled, _torch_network(network.config.model))


def timm_config(network: inference.Network) -> dict[str, Any]:
  """timm's `config.json` for the folder of the tensors.

  Raises:
    errors.InputError: as `torch_tensors`.
  """
  known = _torch_network(network.config.model)
  architecture = f'{known.model["name"]}{known.model["depth"]}'
  classes = len(network.class_names)
  ends = {'first_conv': known.layers['stem/conv'], 'classifier': known.layers['head/dense']}
  return {
    'architecture': architecture,
    'num_classes': classes,
    'label_names': list(network.class_names),
    'pretrained_cfg': {'architecture': architecture, 'num_classes': classes, **_picture(network), **ends},
  }


def _torch_network(model: ml_collections.ConfigDict) -> names.Network:
  known = names.networks('torch')
  fitting = [each for each in known if (each.model['name'], each.model['depth']) == (model.name, model.depth)]
  if not fitting:
    titles = ', '.join(each.title for each in known)
    raise errors.InputError(
      f'torchvision has no {model.name} of depth {model.depth}; --format=safetensors is for {titles}, '
      '--format=stablehlo for any network'
    )
  wanted = names.differences(fitting[0].model, model)
  if wanted:
    raise errors.InputError(
      f'this network is not {fitting[0].title}, whose names it would be saved under: that has {wanted}; '
      'use --format=stablehlo'
    )
  return fitting[0]


def _picture(network: inference.Network) -> dict[str, Any]:
  """How a picture becomes the network's input, as evaluation does it."""
  return preprocessing.to_timm(preprocessing.of_run(network.config.data), network.image_shape)
