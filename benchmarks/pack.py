"""Packs data sets into files small enough to be carried to a machine without a network, and unpacks them there.

  python -m benchmarks.pack --cifar=<dir> --cars=<dir> --weights=<dir> --output=packs [--limit_mb=60]
  python -m benchmarks.pack --unpack=packs --output=data

--cifar: the binary files of CIFAR-10, in lossless WebP (about 100 MB, two files). --cars: Stanford Cars, as many
images as fit in --cars_files files, class by class in turn, a fifth of the bytes for the test split; larger ones are
resized to --cars_side. --weights: Keras' ResNet-50 for TensorFlow.js, its kernels rounded to half precision, all else
exact (one file). Each file is `<set>-<number>-of-<count>.zip`.

Unpacking takes files one after another, in one call or several: a set is whole when its last one has come. The folders
below --output are `cifar-10-batches-bin`, `cars` and `resnet50`, and every file in them is checked. It needs NumPy,
Pillow and absl-py.
"""

import pathlib

from absl import app, flags

from benchmarks import packed

CIFAR = flags.DEFINE_string('cifar', None, 'Folder of the binary files of CIFAR-10.')
CARS = flags.DEFINE_string('cars', None, 'Folder of Stanford Cars.')
WEIGHTS = flags.DEFINE_string('weights', None, "Folder of Keras' ResNet-50 for TensorFlow.js.")
LIMIT = flags.DEFINE_float('limit_mb', 60.0, 'Most megabytes of a file.')
CARS_FILES = flags.DEFINE_integer('cars_files', 1, 'Files of cars.', 1)
CARS_SIDE = flags.DEFINE_integer('cars_side', 224, 'Most pixels of the shorter side of a car.', 1)
UNPACK = flags.DEFINE_list('unpack', [], 'Files to unpack, or folders of them.')
OUTPUT = flags.DEFINE_string('output', None, 'Folder to write to.', required=True)


def main(_):
  output, limit = pathlib.Path(OUTPUT.value), 1e6 * LIMIT.value
  if UNPACK.value:
    for name, there in packed.unpack(packed.archives(UNPACK.value), output).items():
      print(f'{output / packed.SETS[name]}: {len(there["numbers"])} of {there["count"]} files')
    return
  made = {}
  if CIFAR.value:
    made['cifar'] = packed.cifar_pieces(pathlib.Path(CIFAR.value))
  if CARS.value:
    room = CARS_FILES.value * (limit - packed.LEFT_OVER)  # what is left at the end of each file
    made['cars'] = packed.cars_pieces(pathlib.Path(CARS.value), CARS_SIDE.value, room)
  if WEIGHTS.value:
    made['weights'] = packed.weights_pieces(pathlib.Path(WEIGHTS.value))
  for name, (pieces, about) in made.items():
    print(
      f'{name}: {len(pieces)} pieces', *(f'{key} {text}' for key, text in about.items() if key != 'sha256'), sep=', '
    )
    for path in packed.write(name, pieces, about, output, limit):
      print(f'  {path}  {path.stat().st_size / 1e6:.1f} MB')


if __name__ == '__main__':
  app.run(main)
