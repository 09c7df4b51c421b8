"""What transfer saves: ResNet-50's step by what trains, epochs on cached features, and the images' way on the host.

  python -m benchmarks.transfer [--folder=<folder>] [--parts=steps,epochs,host] [--size=224] [--batch=8] [--json=FILE]

steps: one train step (forward, backward, AdamW; ImageNet stem; frozen BatchNorm on its running statistics) on a batch
that is on the device, with the head, the last two blocks and all of it training. Aims: the head at least 2.5 x and the
last two blocks at least 1.8 x faster than all.

epochs: the training steps of one epoch of the same run without and with cached features; the run's workers decode the
images where they are not cached. Compilation and evaluation are not in it. Beside it what comes once a run, with its
compilation: computing the features and writing them, or in later runs reading them from disk. Aim: at least 10 x for
the head.

host: JPEG decoding, random resized crop, mirroring and RandAugment, as uint8 batches in the main process: dnt's stream
(grain) beside Pillow in torch's DataLoader, worker processes and main process bound to one core a worker. Both mirror
on the host here; a run of dnt does it on the device. A turn opens its workers anew and times batches once they flow, by
the wall clock and by the processor time of all its processes, which a busy machine does not disturb.

All take turns, A B A B. Without --folder, the images are generated JPEGs of 500 x 375.
"""

import contextlib
import functools
import json
import multiprocessing
import os
import pathlib
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from typing import Any

from absl import app, flags, logging

from benchmarks import racing
from dnt.parallel.cpu import allocator

PARTS = flags.DEFINE_list('parts', ['steps', 'epochs', 'host'], 'What to measure.')
SIZE = flags.DEFINE_integer('size', 224, 'Pixels a side.')
BATCH = flags.DEFINE_integer('batch', 8, 'Images per step.')
ROUNDS = flags.DEFINE_integer('rounds', 3, 'Times that the contenders take turns.')
EXAMPLES = flags.DEFINE_integer('examples', 64, 'Images per epoch.')
IMAGES = flags.DEFINE_integer('images', 256, 'Images per turn of the host part.')
WORKERS = flags.DEFINE_integer('workers', 1, 'Worker processes, and cores, of the host part.', 1)
FOLDER = flags.DEFINE_string('folder', None, 'Folder of JPEGs, at any depth; default: generated images.')
JSON = flags.DEFINE_string('json', None, 'File to write the figures to.')
CONTENDER = flags.DEFINE_string(
  'contender', None, 'Used by the benchmark itself: serve one contender of the host part.'
)
TRAINABLE = {'head': 2.5, 'top:2': 1.8, 'all': None}  # what trains, and how many times faster than all it is to be
CACHED = 10  # times faster than an uncached epoch, of the head
CACHED_EPOCHS = 9  # of a turn: one is over while the workers of the turn before still read ahead
HOST_BATCH = 32
MAGNITUDE = 9  # of RandAugment, of 30, with two operations per image


def paths() -> list[str]:
  """The JPEGs to read, as many as are asked for at most."""
  found = sorted(path for path in pathlib.Path(FOLDER.value).rglob('*') if path.suffix.lower() in ('.jpg', '.jpeg'))
  if len(found) < 2:
    raise app.UsageError(f'--folder={FOLDER.value} holds {len(found)} JPEGs')
  return [str(path) for path in found[: max(EXAMPLES.value, 256)]]


def generate(folder: pathlib.Path) -> None:
  """Writes the images of an epoch, with the detail of photographs."""
  import numpy as np
  from PIL import Image

  rng = np.random.default_rng(0)
  for index in range(EXAMPLES.value):
    coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), np.uint8)).resize((500, 375), Image.Resampling.BICUBIC)
    noisy = np.clip(np.asarray(coarse) + rng.normal(0, 8, (375, 500, 3)), 0, 255).astype(np.uint8)
    Image.fromarray(noisy).save(folder / f'{index}.jpg', quality=90)


@contextlib.contextmanager
def images_given() -> Generator[None]:
  """Context in which `--folder` names images: generated ones if it names none."""
  with tempfile.TemporaryDirectory() as folder:
    if not FOLDER.value:
      generate(pathlib.Path(folder))
      flags.FLAGS.folder = folder
    yield


def examples(count: int | None = None):
  """Returns the images as a split of two classes."""
  import numpy as np

  from dnt.data import examples as examples_lib
  from dnt.data.sources import folder
  from dnt.data.transforms import images

  chosen = paths()
  chosen = [chosen[index % len(chosen)] for index in range(count or len(chosen))]
  labels = np.arange(len(chosen), dtype=np.int32) % 2
  files = folder.Files(tuple(chosen), labels, images.USUAL)
  return examples_lib.Examples('images', 'train', ('a', 'b'), (None, None, 3), files, labels)


def make(trainable: str, source: Any, **changes: Any):
  """Returns the experiment of ResNet-50 on the images."""
  from configs import transfer_mri_resnet50
  from dnt import config as schema
  from dnt.training import datasets, experiment, open_options

  base = transfer_mri_resnet50.get_config().base
  changes |= {'train.init_from': '', 'data.image_size': SIZE.value, 'data.mean': (0.5,) * 3, 'data.std': (0.25,) * 3}
  changes |= {'train.batch_size': BATCH.value, 'train.steps': 10**6, 'eval.batch_size': BATCH.value}
  config = schema.override(base, {**changes, 'finetune.trainable': trainable}, 'the benchmark')
  spec = datasets.Spec(len(source), (SIZE.value, SIZE.value, 3), source.class_names)
  data = datasets.Data(spec, source, {})
  return experiment.make(open_options.resolve(config, data), spec), data


def spread(seconds: Sequence[float]) -> str:
  return f'{1e3 * statistics.median(seconds):10.1f}  ({1e3 * min(seconds):.1f} to {1e3 * max(seconds):.1f})'


def verdict(ratio: float, aim: float | None) -> str:
  return '' if aim is None else f'  aim {aim}: {"met" if ratio >= aim else "MISSED"}'


def make_step(trainable: str) -> Callable[[], float]:
  """A function that takes one train step and says how long it took."""
  import jax
  import numpy as np

  from dnt.parallel import compile as compile_lib

  run, _ = make(trainable, examples(BATCH.value))
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (BATCH.value, SIZE.value, SIZE.value, 3), np.uint8)
  order = np.arange(BATCH.value, dtype=np.int32)
  batch = jax.device_put({'image': image, 'label': order % 2, 'epoch': np.zeros_like(order), 'position': order})
  program = compile_lib.jit(run.phases[0].train_step, donate_argnums=0)
  state = jax.device_put(run.make_state(run.init_variables()))

  def step():
    nonlocal state
    start = time.perf_counter()
    state, metrics = program(state, batch)
    float(metrics['loss'])
    return time.perf_counter() - start

  step(), step()  # compiled, and the allocator has what it needs
  return step


def measure_steps() -> dict[str, Any]:
  turns = racing.take_turns({trainable: make_step(trainable) for trainable in TRAINABLE}, ROUNDS.value)
  print(f'\nResNet-50, {SIZE.value} px, batch {BATCH.value}: milliseconds a step, and times faster than all')
  found = {}
  for trainable, seconds in turns.items():
    ratio = racing.ratio(turns[trainable], turns['all'])
    print(f'  {trainable:16}{spread(seconds)}  x {ratio:.2f}{verdict(ratio, TRAINABLE[trainable])}')
    found[trainable] = {'seconds': seconds, 'ratio': ratio}
  return found


def make_epoch(run: Any, data: Any, mesh: Any, stack: contextlib.ExitStack, count: int) -> Callable[[], float]:
  """A function that takes the steps of some epochs, as the loop does, and says how long one took, the median."""
  import jax
  import numpy as np

  from dnt.data import pipeline
  from dnt.parallel import compile as compile_lib
  from dnt.parallel import mesh as mesh_lib
  from dnt.training import steps

  loader = stack.enter_context(contextlib.closing(pipeline.make_train_loader(run.config, data.train, mesh)))
  longest = min(run.config.train.steps_per_dispatch, loader.max_steps(0))
  program = steps.make_train_steps(run.phases[0].train_step, loader.batch_at, longest)
  state = mesh_lib.place(run.make_state(run.init_variables()), mesh_lib.replicated(mesh))
  program = compile_lib.ahead(compile_lib.jit(program, donate_argnums=0), state, loader.shapes(), np.int32(1))
  step, epochs = 0, 0

  def epoch():
    nonlocal state, step, epochs
    epochs += 1
    start = time.perf_counter()
    while step < round(epochs * run.steps_per_epoch):
      taken = min(longest, loader.max_steps(step), round(epochs * run.steps_per_epoch) - step)
      state, metrics = program(state, loader.arrays(step, taken), np.int32(taken))
      step += taken
    jax.block_until_ready((state, metrics))
    return time.perf_counter() - start

  epoch()  # workers run, and the allocator has what it needs
  return lambda: statistics.median(epoch() for _ in range(count))


def measure_epochs() -> dict[str, Any]:
  from dnt.finetune import feature_cache
  from dnt.parallel import mesh as mesh_lib

  found = {}
  with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
    contenders, once = {}, {}
    for trainable in ('head', 'top:2'):
      run, data = make(trainable, examples(EXAMPLES.value), **{'finetune.cache_dir': folder})
      mesh = mesh_lib.make_mesh(run.config.mesh)
      contenders[trainable, 'uncached'] = make_epoch(run, data, mesh, stack, 1)
      for name in ('computed', 'read'):
        start = time.perf_counter()
        cached, features = feature_cache.use(run, data, mesh, pathlib.Path(folder))
        once[trainable, name] = time.perf_counter() - start
      contenders[trainable, 'cached'] = make_epoch(cached, features, mesh, stack, CACHED_EPOCHS)
    turns = racing.take_turns(contenders, ROUNDS.value)
  print(f'\nResNet-50, {SIZE.value} px, {EXAMPLES.value} images in batches of {BATCH.value}: milliseconds an epoch')
  for trainable in ('head', 'top:2'):
    ratio = racing.ratio(turns[trainable, 'cached'], turns[trainable, 'uncached'])
    for name in ('uncached', 'cached'):
      print(f'  {trainable + ", " + name:16}{spread(turns[trainable, name])}')
    print(f'  {"":16}x {ratio:.1f}{verdict(ratio, CACHED if trainable == "head" else None)}', end='')
    print(f'; once: {once[trainable, "computed"]:.1f} s to compute, {once[trainable, "read"]:.1f} s to read')
    found[trainable] = {name: turns[trainable, name] for name in ('uncached', 'cached')} | {'ratio': ratio}
    found[trainable] |= {f'seconds_{name}': once[trainable, name] for name in ('computed', 'read')}
  return found


def mirrored(image: Any, generator: Any) -> Any:
  """Half of them left to right."""
  from PIL import Image

  return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if generator.integers(2) else image


def dnt_batches():
  """dnt's host pipeline, of its own parts, and the mirroring."""
  from dnt import config as schema
  from dnt.data import readers, stream
  from dnt.data.transforms import images, policies

  data = schema.default().data
  data.policy, data.rand_augment_ops, data.rand_augment_magnitude = 'rand_augment', 2, MAGNITUDE
  crop = functools.partial(images.random_resized_crop, size=(SIZE.value,) * 2, min_area=0.08)
  transform = functools.partial(readers.in_turn, transforms=(crop, policies.make(data), mirrored))
  reader = readers.TrainReader(examples(), transform, HOST_BATCH, range(HOST_BATCH), seed=0)
  batches = stream.Batches(reader, None, WORKERS.value)
  step = 0
  try:
    while True:
      yield batches.at(step)['image']
      step += 1
  finally:
    batches.close()


class PillowImages:
  """Does the same with Pillow alone, as a data set of torch; an example is an image, uint8 [H, W, 3]."""

  def __init__(self, chosen: Sequence[str], size: int, count: int):
    self.paths, self.size, self.count = chosen, size, count

  def __len__(self) -> int:
    return self.count

  def __getitem__(self, index: int) -> Any:
    import numpy as np
    import torch
    from PIL import Image

    with Image.open(self.paths[index % len(self.paths)]) as image:
      image = image.convert('RGB')
    image = image.resize((self.size, self.size), Image.Resampling.BILINEAR, box=self.crop(*image.size))
    for _ in range(2):
      image = self.operate(image)
    if random.random() < 0.5:
      image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return torch.from_numpy(np.array(image))

  def crop(self, width: int, height: int) -> tuple[int, int, int, int]:
    """RandomResizedCrop: left, top, right, bottom."""
    for _ in range(10):
      area, ratio = width * height * random.uniform(0.08, 1), (3 / 4) * (16 / 9) ** random.random()
      w, h = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
      if 0 < w <= width and 0 < h <= height:
        left, top = random.randint(0, width - w), random.randint(0, height - h)
        return left, top, left + w, top + h
    side = min(width, height)
    return (width - side) // 2, (height - side) // 2, (width + side) // 2, (height + side) // 2

  def operate(self, image: Any) -> Any:
    """One of RandAugment's operations."""
    from PIL import Image, ImageEnhance, ImageOps

    level = MAGNITUDE / 30 * random.choice((-1, 1))

    def affine(*inverse):
      return image.transform(image.size, Image.Transform.AFFINE, inverse, Image.Resampling.NEAREST)

    def enhanced(kind):
      return kind(image).enhance(1 + 0.9 * level)

    move = int(150 / 331 * level * self.size)
    operations = (
      lambda: image,
      lambda: affine(1, 0.3 * level, 0, 0, 1, 0),
      lambda: affine(1, 0, 0, 0.3 * level, 1, 0),
      lambda: affine(1, 0, move, 0, 1, 0),
      lambda: affine(1, 0, 0, 0, 1, move),
      lambda: image.rotate(30 * level, Image.Resampling.NEAREST),
      lambda: enhanced(ImageEnhance.Brightness),
      lambda: enhanced(ImageEnhance.Color),
      lambda: enhanced(ImageEnhance.Contrast),
      lambda: enhanced(ImageEnhance.Sharpness),
      lambda: ImageOps.posterize(image, 8 - round(4 * abs(level))),
      lambda: ImageOps.solarize(image, 255 - 255 * abs(level)),
      lambda: ImageOps.autocontrast(image),
      lambda: ImageOps.equalize(image),
    )
    return random.choice(operations)()


def torch_batches():
  """Pillow in torch's DataLoader."""
  from torch.utils import data

  images = PillowImages(paths(), SIZE.value, 10**6)
  loader = data.DataLoader(images, HOST_BATCH, shuffle=True, num_workers=WORKERS.value)
  for batch in loader:
    yield batch.numpy()


HOST = {'dnt': dnt_batches, 'torch': torch_batches}


def processor_seconds() -> float:
  """Of this process and its workers so far, in user and system mode."""
  own = os.times()
  ticks = 0
  for child in multiprocessing.active_children():
    fields = pathlib.Path(f'/proc/{child.pid}/stat').read_text().rpartition(')')[2].split()
    ticks += int(fields[11]) + int(fields[12])
  return own.user + own.system + ticks / os.sysconf('SC_CLK_TCK')


def serve(contender: str) -> None:
  """Answers each turn with the seconds and the processor seconds per image."""
  if contender == 'dnt':
    allocator.tune()
  cores = sorted(os.sched_getaffinity(0))[: WORKERS.value]
  os.sched_setaffinity(0, cores)

  def turn():
    with contextlib.closing(HOST[contender]()) as batches:
      for _ in range(4 * WORKERS.value):  # until what the workers read ahead is used up
        next(batches)
      start, used, count = time.perf_counter(), processor_seconds(), 0
      while count < IMAGES.value:
        count += len(next(batches))
      found = [(time.perf_counter() - start) * len(cores), processor_seconds() - used]
    return [seconds / count for seconds in found]

  racing.serve(turn=turn)


def measure_host() -> dict[str, Any]:
  given = [f'--{flag.name}={flag.value}' for flag in (SIZE, IMAGES, WORKERS, EXAMPLES, FOLDER)]
  commands = {name: [sys.executable, '-m', 'benchmarks.transfer', f'--contender={name}', *given] for name in HOST}
  with racing.started(commands) as contenders:
    asked = {name: functools.partial(contender.ask, racing.TURN) for name, contender in contenders.items()}
    turns = racing.take_turns(asked, ROUNDS.value)
  print(f'\nJPEG to {SIZE.value} px with RandAugment, {WORKERS.value} worker(s): images a second and core')
  found = {}
  for index, clock in enumerate(('wall clock', 'processor time')):
    seconds = {name: [each[index] for each in turns[name]] for name in HOST}
    ratio = racing.ratio(seconds['dnt'], seconds['torch'])
    for name in HOST:
      rates = [1 / each for each in seconds[name]]
      print(f'  {name:8}{clock:16}{statistics.median(rates):8.1f}  ({min(rates):.1f} to {max(rates):.1f})')
    print(f'  {"dnt / torch":24}{ratio:8.2f}')
    found[clock] = {**seconds, 'ratio': ratio}
  return found


MEASURES = {'steps': measure_steps, 'epochs': measure_epochs, 'host': measure_host}


def main(_):
  logging.set_verbosity(logging.ERROR)
  if CONTENDER.value:
    serve(CONTENDER.value)
    return
  allocator.tune()
  for part in PARTS.value:
    if part not in MEASURES:
      raise app.UsageError(f'--parts: {part!r} is none of {", ".join(MEASURES)}')
  with images_given():
    found = {part: MEASURES[part]() for part in PARTS.value}
  import PIL
  import torch

  from dnt.training import report

  machine = {'machine': platform.machine(), 'cores': os.cpu_count(), 'pillow': PIL.__version__}
  machine |= {'torch': torch.__version__, **report.versions()}
  print(f'\n{machine}')
  if JSON.value:
    pathlib.Path(JSON.value).write_text(json.dumps({**found, **machine}, indent=2) + '\n')


if __name__ == '__main__':
  app.run(main)
