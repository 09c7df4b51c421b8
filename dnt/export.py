"""Exports the newest checkpoint of a run for other programs.

  python -m dnt.export --config=configs/digits_resnet20.py --workdir=runs/mine
  python -m dnt.export --config=configs/imagenet_resnet50.py --workdir=runs/mine --format=safetensors

stablehlo: model.stablehlo, a program that takes uint8 pictures, any number at a time, and returns logits
(jax.export.deserialize), and model.json, which says how to call it. safetensors: model.safetensors with torchvision's
names, and timm's config.json. The averaged weights are exported where the run keeps them (config.ema.decay).
"""

import pathlib

from absl import flags

from dnt import cli, errors, files

ROOT = pathlib.Path(__file__).parents[1]
WORKDIR = flags.DEFINE_string('workdir', None, 'Of the run; default: runs/<name of the config>.')
FORMAT = flags.DEFINE_enum('format', 'stablehlo', ['stablehlo', 'safetensors'], 'What to write.')
OUTPUT = flags.DEFINE_string('output', None, 'Folder to write to; default: <workdir>/export.')


def main() -> None:
  """Reads the flags and exports; prints what is where as the last line."""
  config = cli.config()
  workdir = pathlib.Path(WORKDIR.value or pathlib.Path('runs') / cli.config_path().stem)
  output = pathlib.Path(OUTPUT.value or workdir / 'export')
  if output.resolve() == workdir.resolve():
    raise errors.InputError(
      f'--output={output} is the workdir, which has a config.json of its own; give another folder'
    )

  from dnt import evaluate
  from dnt.parallel import mesh as mesh_lib
  from dnt.transfer import exported

  mesh = mesh_lib.make_mesh(config.mesh)
  loaded = evaluate.load(config, workdir, mesh, ())
  suffix = '_ema' if '_ema' in loaded.variables else ''
  variables = mesh_lib.gather(loaded.variables[suffix])
  if FORMAT.value == 'stablehlo':
    model, content = 'model.stablehlo', exported.stablehlo(loaded.run, variables)
    beside, description = 'model.json', exported.stablehlo_description(loaded.run)
  else:
    from safetensors import numpy as safetensors_numpy

    tensors = exported.torch_tensors(loaded.run, variables)
    model, content = 'model.safetensors', safetensors_numpy.save(tensors, metadata={'format': 'pt'})
    beside, description = 'config.json', exported.timm_config(loaded.run)
  try:
    output.mkdir(parents=True, exist_ok=True)
    files.write(output / model, content)
    files.write_json(output / beside, description)
  except OSError as error:
    raise errors.InputError(
      f'cannot write to {output} ({error.strerror}); give another folder with --output'
    ) from error
  print(f'step {loaded.step}{" (averaged weights)" if suffix else ""}: {output / model} and {beside}')


if __name__ == '__main__':
  cli.run(main, __doc__, ROOT / 'configs' / 'digits_resnet20.py')
