"""Exports a checkpoint of a run for other programs.

  python -m dnt.export --workdir=runs/mine
  python -m dnt.export --workdir=runs/mine --checkpoint=best --format=flax_safetensors
  python -m dnt.export --workdir=runs/transfer_folder --format=safetensors

stablehlo: writes model.stablehlo, a program that takes any number of uint8 images at a time and returns logits
(jax.export.deserialize), and model.json, which describes how to call it. safetensors: writes model.safetensors with
torchvision's names, and timm's config.json; only for the networks that torchvision has: ResNet-18, 34, 50, 101 and 152
(of ImageNet, not of CIFAR) and DenseNet-121. flax_safetensors: writes flax_model.safetensors, the float32 variables of
any network by their Flax paths (params/stem/conv/kernel, batch_stats/stem/norm/mean), and flax_model.json, which
describes network and input. The export holds the averaged weights if the run keeps them (config.ema.decay). It does
not need the data.
"""

import contextlib
import os
import pathlib

from absl import flags

from dnt import cli, errors, files
from dnt import workdir as workdir_lib

# Files of each format: the model, and its description with a key that every description has.
FORMATS = {
  'stablehlo': ('model.stablehlo', 'model.json', 'preprocessing'),
  'safetensors': ('model.safetensors', 'config.json', 'architecture'),
  'flax_safetensors': ('flax_model.safetensors', 'flax_model.json', 'preprocessing'),
}


def define_flags(values: flags.FlagValues) -> None:
  """Defines the flags of this program."""
  cli.define_path('workdir', 'Workdir of the run.', values)
  cli.define_checkpoint(values)
  flags.DEFINE_enum('format', 'stablehlo', [*FORMATS], 'Format of the export.', flag_values=values)
  cli.define_path('output', 'Folder to write to; default: <workdir>/export.', values)


def main(values: flags.FlagValues) -> None:
  """Reads the flags and exports; the last line printed is the files written."""
  if not values.workdir:
    raise errors.InputError('give --workdir=<folder of a dnt run>')
  cli.check_run(values.workdir)
  output = cli.output_folder(values.output, values.workdir, 'export')
  if output.expanduser().resolve() == pathlib.Path(values.workdir).expanduser().resolve():
    raise errors.InputError(f'--output={output} is the workdir, which has another config.json; give another folder')
  model, beside, key = FORMATS[values.format]
  _check_files(output / model, output / beside, key)

  from safetensors import numpy as safetensors_numpy

  from dnt import inference
  from dnt.inference import export

  network = inference.load(values.workdir, checkpoint=values.checkpoint)
  named = {'safetensors': export.torch_tensors, 'flax_safetensors': export.flax_tensors}.get(values.format)
  tensors = named(network) if named else {}  # or refuses the network
  files.make_workdir(output, '--output')
  if values.format == 'stablehlo':
    content, description = export.stablehlo(network), export.stablehlo_description(network)
  elif values.format == 'safetensors':
    content = safetensors_numpy.save(tensors, metadata={'format': 'pt'})
    description = export.timm_config(network)
    export.say_decoding(network)
  else:
    content = safetensors_numpy.save(tensors, metadata={'format': 'flax'})
    description = export.flax_description(network)
  try:
    files.write_json(output / beside, description)  # first: a model without one is not of dnt
    files.write(output / model, content)
  except OSError as error:
    raise errors.InputError(
      f'cannot write to {output} ({error.strerror}); give another folder with --output'
    ) from error
  paths = f' ({len(tensors):,} tensors by Flax path)' if values.format == 'flax_safetensors' else ''
  print(f'{output / model}{paths} and {beside}, {network.describe_checkpoint()}')


def _check_files(model: pathlib.Path, beside: pathlib.Path, key: str) -> None:
  """Refuses to replace the files of another program, or of a run; an earlier export, or one like it, is replaced."""
  with contextlib.suppress(errors.InputError):
    if key in files.read_object(beside):
      return
  for path in (beside, model):
    if os.path.exists(path):  # as pathlib's, but without an error for a folder that cannot be read
      workdir_lib.refuse_others(path, 'an export', '--output')


PROGRAM = cli.Program(__doc__, define_flags, main)

if __name__ == '__main__':
  cli.run(PROGRAM)
