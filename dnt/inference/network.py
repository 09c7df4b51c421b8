"""Loads a trained network from one string, without its training data.

A run's workdir holds everything this needs: the resolved config, and in each checkpoint the weights, the class names
and the image shape.
"""

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from dnt import checkpoints, errors, models
from dnt import config as schema
from dnt import workdir as workdir_lib
from dnt.config import typed
from dnt.data.transforms import augment
from dnt.models import depth
from dnt.parallel import mesh as mesh_lib
from dnt.training import initialize
from dnt.weights import preprocessing, pretrained


class Network(NamedTuple):
  """A trained network with its variables: `model.apply(variables, preprocess(images), train=False)` gives logits.

  Attributes:
    config: resolved. For weights from outside dnt, `model` and `data` match the weights and the rest are defaults.
    model: the Flax module.
    table: the depth list.
    variables: `params` and `batch_stats` in the model's layout; the averaged ones if the run keeps them.
    preprocess: maps uint8 images [B, H, W, C] to the network's input; pure, for use inside jit.
    image_shape: (H, W, C) of an image.
    class_names: class names in the order of the head; 'class 0', 'class 1', ... if the source has no names.
    origin: the string it was loaded from.
    step: step of the run's checkpoint; None for weights from outside dnt.
    averaged: whether the weights are the averaged ones (`config.ema`).
    named: whether the source has class names.
    checkpoint: the name or step by which the checkpoint was chosen.
  """

  config: typed.Config
  model: Any
  table: tuple[depth.Row, ...]
  variables: dict[str, Any]
  preprocess: Callable[[jax.Array], jax.Array]
  image_shape: tuple[int, int, int]
  class_names: tuple[str, ...]
  origin: str
  step: int | None
  averaged: bool
  named: bool = True
  checkpoint: str = checkpoints.NEWEST

  def describe_checkpoint(self) -> str:
    """Returns in words by which checkpoint results are; empty for weights from outside dnt."""
    if self.step is None:
      return ''
    name = '' if self.checkpoint == str(self.step) else f'{self.checkpoint} '
    return f'by the {name}checkpoint of step {self.step}{", averaged weights" if self.averaged else ""}'


class _Found(NamedTuple):
  """The pieces from which `load` builds a network."""

  config: typed.Config
  variables: dict[str, Any]  # unrolled
  image_shape: tuple[int, int, int]
  class_names: tuple[str, ...]
  step: int | None
  averaged: bool


def load(text: str | os.PathLike[str], mesh: Mesh | None = None, checkpoint: str | int = checkpoints.NEWEST) -> Network:
  """Reads a trained network; it changes nothing on disk.

  Args:
    text: a string in one of the forms of `config.train.init_from`, or a path.
    mesh: mesh to place the variables on; without one they are numpy arrays.
    checkpoint: checkpoint of a run: newest (or last), best (by its `checkpoint.best_metric`) or a step.

  Raises:
    errors.InputError: nothing is there, the files are damaged, or dnt does not know the network; or weights from
      outside dnt, which have no checkpoints, are given with one.
  """
  text, checkpoint = os.fspath(text), str(checkpoint)
  source = pretrained.Source(text, checkpoint)
  if not source.workdir and checkpoint not in checkpoints.NEWEST_NAMES:
    raise errors.InputError(f'{text} is no workdir of a run and has no checkpoint {checkpoint!r}')
  result = _of_run(source) if source.workdir else _of_weights(source)
  config, data = result.config, result.config.data
  model = models.make(config.model, config.model.num_classes)
  trace = depth.trace(model, result.image_shape)
  variables = initialize.match(trace, result.variables, text)
  if mesh is not None:
    variables = mesh_lib.place(variables, mesh_lib.parameter_shardings(mesh, variables))
  prepare = augment.make_preprocess(data, data.mean, data.std, jnp.dtype(config.model.dtype))
  return Network(
    config=config,
    model=model,
    table=trace.table,
    variables=variables,
    preprocess=lambda images: prepare({'image': images}, None),
    image_shape=result.image_shape,
    class_names=result.class_names or tuple(f'class {index}' for index in range(config.model.num_classes)),
    origin=text,
    step=result.step,
    averaged=result.averaged,
    named=bool(result.class_names),
    checkpoint=checkpoint,
  )


def _of_run(source: pretrained.Source) -> _Found:
  assert source.workdir, 'the source is a run'
  config, saved = source.run_config, source.checkpoint
  *sides, channels = saved.meta['image_shape']
  height, width = (side or config.data.image_size for side in sides)
  if not (height and width):
    raise errors.InputError(
      f'the checkpoint in {source.workdir} is too old to hold the size of its images; set data.image_size in '
      f'{source.workdir / workdir_lib.CONFIG} to the pixels per side'
    )
  return _Found(
    config=config,
    variables=source.variables,
    image_shape=(height, width, channels),
    class_names=source.class_names,
    step=saved.step,
    averaged=bool(saved.ema),
  )


def _of_weights(source: pretrained.Source) -> _Found:
  prepared, variables = source.preprocessing, source.variables
  if not isinstance(prepared.image_size, int) or prepared.eval_resize not in preprocessing.RESIZES:
    raise errors.InputError(
      f'{source.origin} takes images that are not square, or are resized in another way than '
      f'{" or ".join(preprocessing.RESIZES)} (crop_mode {prepared.eval_resize!r}); dnt does not support this'
    )
  if source.absent:
    raise errors.InputError(
      f'{source.origin} is a backbone without a classifier (which would be {", ".join(source.absent)}), so it has no '
      'classes to predict; train one on it (config.train.init_from) and give the workdir of that run'
    )
  config = schema.default()
  config.train.init_from = source.origin
  pretrained.fill_data(config.data, source)
  config.model.update(source.network)
  config.model.num_classes = variables['params']['head']['dense']['kernel'].shape[-1]
  config.model.update(models.resolved_options(config.model))
  shape = (prepared.image_size, prepared.image_size, len(prepared.mean))
  return _Found(config, variables, shape, source.class_names, None, False)
