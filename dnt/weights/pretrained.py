"""Loads pretrained weights and their preprocessing from one string, `config.train.init_from`."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from dnt import checkpoints, errors, models
from dnt import config as schema
from dnt import workdir as workdir_lib
from dnt.config import run_config, typed
from dnt.weights import hub, keras_files, names, torch_files
from dnt.weights import preprocessing as preprocessing_lib

FORMS = (
  "a dnt workdir, '<file>.safetensors', '<file>.pth' (.pt, .bin), '<file>.h5', 'tfjs:<dir>' or 'hf:<owner>/<name>'"
)


@dataclasses.dataclass(frozen=True)
class Pretrained:
  """Weights and the information needed to use them.

  Attributes:
    variables: `{'params': ..., 'batch_stats': ...}`, float32 numpy arrays, unrolled.
    preprocessing: the image preprocessing.
    class_names: class names in the order of the head; empty if the source has none.
    model: values of `config.model` that the weights need to compute the same function.
    origin: the string they were loaded from.
  """

  variables: dict[str, Any]
  preprocessing: preprocessing_lib.Preprocessing
  class_names: tuple[str, ...]
  model: Mapping[str, Any]
  origin: str


class _About(NamedTuple):
  """The preprocessing and class names stored next to the weights."""

  preprocessing: preprocessing_lib.Preprocessing
  class_names: tuple[str, ...]


class _Format(NamedTuple):
  """The readers for one kind of file or folder."""

  framework: str
  tensors: Callable[[pathlib.Path], dict[str, np.ndarray]]
  about: Callable[[pathlib.Path], _About]


def _about_torch(path: pathlib.Path) -> _About:
  beside = preprocessing_lib.TimmConfig(path.with_name(hub.CONFIG))
  return _About(beside.preprocessing, beside.class_names)


def _about_h5(path: pathlib.Path) -> _About:
  del path
  return _About(preprocessing_lib.KERAS, ())


def _about_tfjs(folder: pathlib.Path) -> _About:
  return _About(preprocessing_lib.KERAS, keras_files.class_names(folder))


_PICKLE = _Format('torch', torch_files.read_pickle, _about_torch)
_FILES = {
  '.safetensors': _Format('torch', torch_files.read_safetensors, _about_torch),
  '.pth': _PICKLE,
  '.pt': _PICKLE,
  '.bin': _PICKLE,
  '.h5': _Format('keras', keras_files.read_h5, _about_h5),
}
_TFJS = _Format('keras', keras_files.read_tfjs, _about_tfjs)


def load(text: str) -> Pretrained:
  """Reads weights; `check_model` and the network check later whether they fit.

  Args:
    text: one of `FORMS`.

  Raises:
    errors.InputError: nothing is there, a file is damaged or refused, or the tensor names match no network of dnt.
  """
  found, path = _locate(text)
  if found is None:
    config, saved = read_run_config(path), checkpoints.load_parameters(path)
    decisive = {key: config.model[key] for key in schema.model_options('function')}
    return Pretrained(
      variables={'params': saved.params, 'batch_stats': saved.batch_stats},
      preprocessing=preprocessing_lib.of_run(config.data),
      class_names=tuple(saved.meta.get('class_names', ())),
      model={key: value for key, value in decisive.items() if value is not None},
      origin=text,
    )
  about = found.about(path)
  tensors, network = _identify(found, path, text)
  variables = names.to_variables(tensors, network, text)
  classes = variables['params']['head']['dense']['kernel'].shape[-1]
  if about.class_names and len(about.class_names) != classes:
    raise errors.InputError(f'{text}: {len(about.class_names)} class names lie beside weights of {classes} classes')
  return Pretrained(variables, about.preprocessing, about.class_names, network.model, text)


def preprocessing(text: str) -> preprocessing_lib.Preprocessing:
  """Returns the preprocessing of weights without reading the weights.

  Args:
    text: one of `FORMS`.

  Raises:
    errors.InputError: nothing is there, or the description next to the weights is damaged.
  """
  found, path = _locate(text)
  return preprocessing_lib.of_run(read_run_config(path).data) if found is None else found.about(path).preprocessing


def fill_model(model: typed.Model, text: str) -> None:
  """Sets `config.model` to the network of the weights; keeps the user's options, which `check_model` checks later.

  Args:
    model: the `model` section of a config, not locked.
    text: one of `FORMS`.

  Raises:
    errors.InputError: as in `load`.
  """
  found, path = _locate(text)
  if found is None:
    ran = read_run_config(path).model.to_dict()
    network = {key: value for key, value in ran.items() if key not in schema.model_options('run')}
  else:
    network = _identify(found, path, text)[1].model
  for key, value in network.items():
    if key == 'name' or models.is_open(model, key):
      model[key] = value


def check_model(given: Pretrained, model: typed.Model) -> None:
  """Checks that a network computes what the weights were trained for.

  Args:
    given: from `load`.
    model: resolved `config.model`.

  Raises:
    errors.InputError: it does not; the message lists the options to set.
  """
  now = model.to_dict()
  family = given.model.get('name', model.name)
  if family != model.name:
    # The defaults of the other family, given only its name, stem and depth.
    other = schema.default().model
    other.update({'name': family, 'stem': given.model['stem'], 'depth': given.model['depth']})
    now |= {**models.resolved_options(other), 'stem': model.stem, 'depth': model.depth}
  wanted = names.differences(given.model, now)
  if wanted:
    raise errors.InputError(f'{given.origin} holds weights of another network than config.model; set {wanted}')


def _locate(text: str) -> tuple[_Format | None, pathlib.Path]:
  """Returns the format and the path of the weights; the format is None for a workdir."""
  kind, colon, where = text.partition(':')
  if colon and kind == 'hf':
    return _FILES['.safetensors'], hub.download(where)
  if colon and kind == 'tfjs':
    return _TFJS, _existing(where, text, pathlib.Path.is_dir)
  suffix = pathlib.Path(text).suffix.lower()
  if suffix in _FILES:
    return _FILES[suffix], _existing(text, text, pathlib.Path.is_file)
  return None, _existing(text, text, pathlib.Path.is_dir)


def _identify(found: _Format, path: pathlib.Path, text: str) -> tuple[dict[str, np.ndarray], names.Network]:
  """Returns the tensors of a file under their current names, and the network they belong to."""
  tensors = names.current_names(found.tensors(path), found.framework)
  return tensors, names.identify(tensors, found.framework, text)


def _existing(where: str, text: str, is_there: Callable[[pathlib.Path], bool]) -> pathlib.Path:
  path = pathlib.Path(where).expanduser()
  if not where or not is_there(path):
    raise errors.InputError(f'there is nothing at {path} (the weights {text!r}); valid: {FORMS}')
  return path


def workdir(text: str) -> pathlib.Path | None:
  """Returns the workdir that the text names; None if it names weights from outside dnt.

  Args:
    text: one of `FORMS`.

  Raises:
    errors.InputError: nothing is there.
  """
  found, path = _locate(text)
  return path if found is None else None


def read_run_config(workdir: pathlib.Path) -> typed.Config:
  """Reads the resolved config of a run from its workdir.

  Raises:
    errors.InputError: the folder is not a workdir.
  """
  path = workdir / workdir_lib.CONFIG
  if not path.is_file():
    raise errors.InputError(f'{workdir} is no workdir of a dnt run (it has no {workdir_lib.CONFIG}); valid: {FORMS}')
  return run_config.get_config(str(path))
