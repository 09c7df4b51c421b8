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

import pathlib

from absl import flags

from dnt import cli, errors, files

FORMATS = ('stablehlo', 'safetensors', 'flax_safetensors')


def define_flags(values: flags.FlagValues) -> None:
  """Defines the flags of this program."""
  cli.define_path('workdir', 'Workdir of the run.', values)
  cli.define_checkpoint(values)
  flags.DEFINE_enum('format', 'stablehlo', FORMATS, 'Format of the export.', flag_values=values)
  cli.define_path('output', 'Folder to write to; default: <workdir>/export.', values)


def main(values: flags.FlagValues) -> None:
  """Reads the flags and exports; the last line printed is the files written."""
  if not values.workdir:
    raise errors.InputError('give --workdir=<folder of a dnt run>')
  cli.check_run(values.workdir)
  output = cli.output_folder(values.output, values.workdir, 'export')
  if output.expanduser().resolve() == pathlib.Path(values.workdir).expanduser().resolve():
    raise errors.InputError(f'--output={output} is the workdir, which has another config.json; give another folder')

  from safetensors import numpy as safetensors_numpy

  from dnt import inference
  from dnt.inference import export

  network = inference.load(values.workdir, checkpoint=values.checkpoint)
  named = {'safetensors': export.torch_tensors, 'flax_safetensors': export.flax_tensors}.get(values.format)
  tensors = named(network) if named else {}  # or refuses the network
  files.make_workdir(output, '--output')
  if values.format == 'stablehlo':
    model, content = 'model.stablehlo', export.stablehlo(network)
    beside, description = 'model.json', export.stablehlo_description(network)
  elif values.format == 'safetensors':
    model, content = 'model.safetensors', safetensors_numpy.save(tensors, metadata={'format': 'pt'})
    beside, description = 'config.json', export.timm_config(network)
    export.say_decoding(network)
  else:
    model, content = 'flax_model.safetensors', safetensors_numpy.save(tensors, metadata={'format': 'flax'})
    beside, description = 'flax_model.json', export.flax_description(network)
  try:
    files.write(output / model, content)
    files.write_json(output / beside, description)
  except OSError as error:
    raise errors.InputError(
      f'cannot write to {output} ({error.strerror}); give another folder with --output'
    ) from error
  paths = f' ({len(tensors):,} tensors by Flax path)' if values.format == 'flax_safetensors' else ''
  print(f'{output / model}{paths} and {beside}, {network.describe_checkpoint()}')


PROGRAM = cli.Program(__doc__, define_flags, main)

if __name__ == '__main__':
  cli.run(PROGRAM)
