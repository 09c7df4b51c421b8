"""A trained network in forms that other programs run: StableHLO, and PyTorch's tensors by torchvision's names."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax import export

from dnt import errors, experiment
from dnt.models import depth
from dnt.transfer import names, preprocessing

PLATFORMS = ('cpu', 'cuda', 'tpu')  # what a program is lowered for, wherever it is exported


def stablehlo(run: experiment.Experiment, variables: Mapping[str, Any]) -> bytes:
  """The network with its weights and its normalization as one program, for `jax.export.deserialize`.

  The program takes pictures uint8 [b, H, W, C], any number of them, and returns float32 logits [b, classes].

  Args:
    run: the experiment.
    variables: `params` and `batch_stats` in the model's layout, whole on the host.
  """

  def logits(pictures):
    return run.model.apply(variables, run.preprocess({'image': pictures}, None), train=False)

  (batch,) = export.symbolic_shape('b')
  pictures = jax.ShapeDtypeStruct((batch, *run.spec.image_shape), jnp.uint8)
  return bytes(export.export(jax.jit(logits), platforms=PLATFORMS)(pictures).serialize())


def stablehlo_description(run: experiment.Experiment) -> dict[str, Any]:
  """What must be known to call the program, JSON: its input, how pictures come to it, its classes."""
  picture = _picture(run)
  # Normalization is in the program: its numbers are told, and not to be applied.
  told = {'normalized_inside': True, 'mean': picture.pop('mean'), 'std': picture.pop('std')}
  return {
    'input': {'shape': ['b', *run.spec.image_shape], 'dtype': 'uint8', 'channels': 'red first'},
    'output': {'shape': ['b', len(run.spec.class_names)], 'dtype': 'float32', 'values': 'logits'},
    'preprocessing': picture | told,
    'platforms': list(PLATFORMS),
    'class_names': list(run.spec.class_names),
  }


def torch_tensors(run: experiment.Experiment, variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """The variables as torchvision names them, float32; timm's names are the same.

  Args:
    run: the experiment.
    variables: as for `stablehlo`.

  Raises:
    errors.InputError: a network that torchvision does not have; says in what it differs.
  """
  trace = depth.trace(run.model, run.spec.image_shape)
  unrolled = depth.to_unrolled(dict(variables), trace.scanned)
  return names.from_variables(unrolled, _torch_network(run.config.model))


def timm_config(run: experiment.Experiment) -> dict[str, Any]:
  """timm's `config.json` for the folder of the tensors.

  Raises:
    errors.InputError: as `torch_tensors`.
  """
  network = _torch_network(run.config.model)
  architecture = f'{network.model["name"]}{network.model["depth"]}'
  classes = len(run.spec.class_names)
  ends = {'first_conv': network.layers['stem/conv'], 'classifier': network.layers['head/dense']}
  return {
    'architecture': architecture,
    'num_classes': classes,
    'label_names': list(run.spec.class_names),
    'pretrained_cfg': {'architecture': architecture, 'num_classes': classes, **_picture(run), **ends},
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


def _picture(run: experiment.Experiment) -> dict[str, Any]:
  """How a picture becomes the network's input, as evaluation does it."""
  return preprocessing.to_timm(preprocessing.of_run(run.config.data), run.spec.image_shape)
