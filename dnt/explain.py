"""Shows where in a picture a network sees what it says, and which pictures excite it most.

  python -m dnt.explain --workdir=runs/mine --images='scans/*.jpg'
  python -m dnt.explain --workdir=runs/mine --exciting=val --top=8
  python -m dnt.explain --weights=tfjs:resnet50 --images=photos --method=layer_cam --entry=stage4/block001 --output=out

--images: for each picture a class activation map (Grad-CAM, Grad-CAM++, HiResCAM or LayerCAM) at an entry of the depth
list, drawn over it, and how much the probability of the class hangs on what the map names: deletion and insertion,
beside those of a random map. --exciting: the pictures of a split that excite each channel of the entry, and each class,
most. Written are a PNG per picture, sheets of them, explain.html and explain.json.
"""

import pathlib

from absl import flags

from dnt import cli, errors

METHODS = ('grad_cam', 'grad_cam_plus_plus', 'hires_cam', 'layer_cam')
WORKDIR = flags.DEFINE_string('workdir', None, 'Of a run: its newest checkpoint.')
WEIGHTS = flags.DEFINE_string('weights', None, 'In its place pretrained weights, as config.train.init_from takes them.')
IMAGES = flags.DEFINE_string('images', None, 'Pictures to explain: a file, a folder or a quoted glob.')
ENTRY = flags.DEFINE_string('entry', None, 'Entry of the depth list; default: the last whose output has places.')
METHOD = flags.DEFINE_enum('method', 'grad_cam', METHODS, 'What the maps are.')
TARGET = flags.DEFINE_string('target', None, 'Class that the maps speak for, by name or index; default: the predicted.')
EXCITING = flags.DEFINE_string('exciting', None, 'Split of the run to search for the most exciting pictures.')
TOP = flags.DEFINE_integer('top', 5, 'With --exciting: pictures of each channel and class.', 1)
OUTPUT = flags.DEFINE_string('output', None, 'Folder to write to; default: <workdir>/explain.')


def main() -> None:
  """Reads the flags and explains; prints what was written where as the last line."""
  text = cli.trained(WORKDIR.value, WEIGHTS.value)
  if not IMAGES.value and not EXCITING.value:
    raise errors.InputError('give --images=<file, folder or glob>, --exciting=<split of the run>, or both')
  if EXCITING.value and not WORKDIR.value:
    raise errors.InputError('--exciting searches the data of a run: it needs --workdir, not --weights')
  if TARGET.value and not IMAGES.value:
    raise errors.InputError('--target is the class of the maps of pictures: it needs --images')
  if TOP.present and not EXCITING.value:
    raise errors.InputError('--top is of the pictures that excite most: it needs --exciting')
  if not WORKDIR.value and not OUTPUT.value:
    raise errors.InputError('--weights has no folder of a run to write into: give --output=<folder>')
  output = pathlib.Path(OUTPUT.value or pathlib.Path(WORKDIR.value) / 'explain')

  from dnt.explanation import report
  from dnt.parallel import compile as compile_lib

  compile_lib.enable_cache()
  wanted = report.Wanted(ENTRY.value, METHOD.value, TARGET.value, IMAGES.value, EXCITING.value, TOP.value)
  print(f'{report.run(text, wanted, output)}  {output}')


if __name__ == '__main__':
  cli.run(main, __doc__)
