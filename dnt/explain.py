"""Shows which parts of an image a prediction depends on, and which images activate a network most.

  python -m dnt.explain --workdir=runs/mine --images='scans/*.jpg'
  python -m dnt.explain --workdir=runs/mine --top_activating=val --top=8
  python -m dnt.explain --weights=tfjs:resnet50 --images=photos --method=layer_cam --entry=stage4/block001 --output=out

--images: computes for each image a class activation map (Grad-CAM, Grad-CAM++, HiResCAM or LayerCAM) at an entry of the
depth list and draws it over the image. It also measures how much the probability of the class depends on the regions
that the map marks: deletion and insertion, next to those of a random map. --top_activating: finds the images of a split
that activate each channel of the entry, and each class, most. The output is a PNG per image, sheets of them,
explain.html and explain.json.
"""

from absl import flags

from dnt import cli, errors

METHODS = ('grad_cam', 'grad_cam_plus_plus', 'hires_cam', 'layer_cam')


def define_flags(values: flags.FlagValues) -> None:
  """Defines the flags of this program."""
  cli.define_path('workdir', 'Workdir of a run.', values)
  flags.DEFINE_string(
    'weights',
    None,
    'Pretrained weights in place of a run; valid values are those of config.train.init_from.',
    flag_values=values,
  )
  cli.define_checkpoint(values)
  flags.DEFINE_string('images', None, 'Images to explain: a file, a folder or a quoted glob.', flag_values=values)
  flags.DEFINE_string(
    'entry', None, 'Entry of the depth list; default: the last one with a spatial output.', flag_values=values
  )
  flags.DEFINE_enum('method', 'grad_cam', METHODS, 'Method that computes the maps.', flag_values=values)
  flags.DEFINE_string(
    'target', None, 'Class that the maps explain, by name or index; default: the predicted class.', flag_values=values
  )
  flags.DEFINE_string(
    'top_activating',
    None,
    'Split of the run to search for the images that activate each channel and class most.',
    flag_values=values,
  )
  flags.DEFINE_alias('exciting', 'top_activating', flag_values=values)
  flags.DEFINE_integer(
    'top', 5, 'With --top_activating: number of images for each channel and class.', 1, 100, flag_values=values
  )
  cli.define_path('output', 'Folder to write to; default: <workdir>/explain.', values)


def main(values: flags.FlagValues) -> None:
  """Reads the flags and explains; the last line printed is what was written and its folder."""
  text = cli.model_source(values.workdir, values.weights)
  if not values.images and not values.top_activating:
    raise errors.InputError('give --images=<file, folder or glob>, --top_activating=<split of the run>, or both')
  if values.top_activating and not values.workdir:
    raise errors.InputError('--top_activating searches the data of a run: it needs --workdir, not --weights')
  if values.target and not values.images:
    raise errors.InputError('--target is the class that the maps of images explain: it needs --images')
  if values['top'].present and not values.top_activating:
    raise errors.InputError('--top is the number of top-activating images: it needs --top_activating')
  output = cli.output_folder(values.output, values.workdir, 'explain')

  from dnt.explanation import report
  from dnt.parallel import compile as compile_lib

  compile_lib.enable_cache()
  wanted = report.Wanted(values.entry, values.method, values.target, values.images, values.top_activating, values.top)
  print(f'{report.run(text, wanted, output, values.checkpoint)}  {output}')


PROGRAM = cli.Program(__doc__, define_flags, main)

if __name__ == '__main__':
  cli.run(PROGRAM)
