"""Data sets in files of a limited size: what goes in, and how it comes out again; benchmarks/pack.py is the program."""

import hashlib
import io
import itertools
import json
import pathlib
import zipfile
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

MANIFEST = 'manifest.json'
STATE = 'unpacked.json'
SETS = {'cifar': 'cifar-10-batches-bin', 'cars': 'cars', 'weights': 'resnet50'}  # and their folders, unpacked
SIDE, RECORD = 32, 3 * 32 * 32 + 1
COLUMNS, TILES = 25, 1000  # of a mosaic: WebP compresses single images less well
TEST_FRACTION = 0.2  # of the bytes of the cars
OVERHEAD = 4096  # of a file: its manifest, and the end of its list of members
LEFT_OVER = 50_000  # at the end of a file of cars, where the next one does not fit
WEIGHTS_FILE = 'group1-shard1of1.bin'


class Piece(NamedTuple):
  """What is not split."""

  name: str
  content: bytes

  @property
  def size(self) -> int:
    """In a zip file, with what that says of it."""
    return len(self.content) + 2 * len(self.name) + 160


def sha256(content: bytes) -> str:
  return hashlib.sha256(content).hexdigest()


def mosaic(images: np.ndarray) -> np.ndarray:
  """Tiles images, uint8 [N, 32, 32, 3], into one image; black tiles fill its last row."""
  rows = -(-len(images) // COLUMNS)
  tiles = np.zeros((rows * COLUMNS, SIDE, SIDE, 3), np.uint8)
  tiles[: len(images)] = images
  return tiles.reshape(rows, COLUMNS, SIDE, SIDE, 3).transpose(0, 2, 1, 3, 4).reshape(rows * SIDE, COLUMNS * SIDE, 3)


def tiles(image: np.ndarray, count: int) -> np.ndarray:
  """The inverse of `mosaic`."""
  rows = len(image) // SIDE
  split = image.reshape(rows, SIDE, COLUMNS, SIDE, 3).transpose(0, 2, 1, 3, 4)
  return split.reshape(-1, SIDE, SIDE, 3)[:count]


def cifar_pieces(folder: pathlib.Path) -> tuple[list[Piece], dict[str, Any]]:
  """Returns pieces of a thousand images, and the digest of each file."""
  pieces, digests = [], {}
  for path in sorted(folder.glob('*.bin')):
    content = path.read_bytes()
    digests[path.name] = sha256(content)
    records = np.frombuffer(content, np.uint8).reshape(-1, RECORD)
    for start in range(0, len(records), TILES):
      part = records[start : start + TILES]
      images = part[:, 1:].reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)
      encoded = io.BytesIO()
      Image.fromarray(mosaic(images)).save(encoded, 'webp', lossless=True, quality=100, method=4)
      pieces.append(Piece(f'{path.name}/{start:05d}.webp', encoded.getvalue()))
      pieces.append(Piece(f'{path.name}/{start:05d}.labels', part[:, 0].tobytes()))
  names = folder / 'batches.meta.txt'
  return [Piece(names.name, names.read_bytes()), *pieces], {'sha256': digests}


def unpack_cifar(archive: zipfile.ZipFile, folder: pathlib.Path) -> None:
  for name in archive.namelist():
    if name == 'batches.meta.txt':
      (folder / name).write_bytes(archive.read(name))
    if not name.endswith('.webp'):
      continue
    file, _, place = name.removesuffix('.webp').partition('/')
    labels = np.frombuffer(archive.read(f'{file}/{place}.labels'), np.uint8)
    with Image.open(io.BytesIO(archive.read(name))) as image:
      images = tiles(np.asarray(image.convert('RGB')), len(labels))
    records = np.concatenate([labels[:, None], images.transpose(0, 3, 1, 2).reshape(len(labels), -1)], axis=1)
    path = folder / file
    path.touch()
    with path.open('r+b') as out:
      out.seek(int(place) * RECORD)
      out.write(records.tobytes())


def cars_pieces(folder: pathlib.Path, side: int, limit: float) -> tuple[list[Piece], dict[str, Any]]:
  """Returns as many images as fit in `limit` bytes, one of each class in turn."""
  from dnt import config as schema
  from dnt.data.sources import cars

  splits, pieces, about = cars.cars(str(folder), schema.default().data, 0), [], {}
  for split, fraction in (('test', TEST_FRACTION), ('train', 1 - TEST_FRACTION)):
    found = splits[split]()
    room, taken = fraction * limit, []
    for index in in_turn(found.labels):
      path, label = pathlib.Path(found.store.paths[index]), int(found.labels[index])
      # The number keeps classes in their order, which is by name where they are folders.
      name = f'{split}/{label + 1:03d} {found.class_names[label].replace("/", "-")}/{path.stem}.jpg'
      piece = Piece(name, resized(path, side))
      room -= piece.size
      if room < 0:
        break
      taken.append(piece)
    pieces += taken
    about[split] = f'{len(taken)} of {len(found.labels)} images'
  return pieces, about


def in_turn(labels: np.ndarray) -> Iterator[int]:
  """Places of the first of each label, then of the second of each, ..."""
  places = [np.flatnonzero(labels == label) for label in range(labels.max() + 1)]
  return (int(index) for row in itertools.zip_longest(*places) for index in row if index is not None)


def resized(path: pathlib.Path, side: int) -> bytes:
  """A JPEG whose shorter side has `side` pixels at most; smaller ones stay as they are."""
  content = path.read_bytes()
  with Image.open(io.BytesIO(content)) as image:
    factor = side / min(image.size)
    if factor >= 1 and image.format == 'JPEG':
      return content
    size = tuple(max(1, round(min(factor, 1) * length)) for length in image.size)
    encoded = io.BytesIO()
    image.convert('RGB').resize(size, Image.Resampling.LANCZOS).save(encoded, 'jpeg', quality=90)
    return encoded.getvalue()


def unpack_cars(archive: zipfile.ZipFile, folder: pathlib.Path) -> None:
  archive.extractall(folder, [name for name in archive.namelist() if name != MANIFEST])


def weights_pieces(folder: pathlib.Path) -> tuple[list[Piece], dict[str, Any]]:
  """A piece a tensor, kernels as float16."""
  from dnt.weights import keras_files

  found = keras_files.read_tfjs(folder)
  content = json.loads((folder / keras_files.MODEL_FILE).read_text())
  content['weightsManifest'] = [
    {
      'paths': [WEIGHTS_FILE],
      'weights': [{'name': name, 'shape': list(tensor.shape), 'dtype': 'float32'} for name, tensor in found.items()],
    }
  ]
  pieces = [Piece(keras_files.MODEL_FILE, json.dumps(content).encode())]
  labels = folder / keras_files.LABELS_FILE
  if labels.is_file():
    pieces.append(Piece(labels.name, labels.read_bytes()))
  for number, tensor in enumerate(found.values()):
    # Kernels are far from float16's limits; variances may not be.
    pieces.append(Piece(f'{number:04d}', tensor.astype('<f2' if tensor.ndim > 1 else '<f4').tobytes()))
  return pieces, {'kernels': 'rounded to float16'}


def unpack_weights(archive: zipfile.ZipFile, folder: pathlib.Path) -> None:
  for name in archive.namelist():
    if name != MANIFEST:
      (folder / name).write_bytes(archive.read(name))


def join_weights(folder: pathlib.Path) -> None:
  """Once all tensors are there, the one file of them that the format has."""
  manifest = json.loads((folder / 'model.json').read_text())['weightsManifest'][0]['weights']
  with (folder / WEIGHTS_FILE).open('wb') as out:
    for number, weight in enumerate(manifest):
      tensor = np.frombuffer(
        (folder / f'{number:04d}').read_bytes(), '<f2' if len(weight['shape']) > 1 else '<f4'
      ).reshape(weight['shape'])
      out.write(tensor.astype('<f4').tobytes())
      (folder / f'{number:04d}').unlink()


def write(name: str, pieces: Sequence[Piece], about: dict[str, Any], folder: pathlib.Path, limit: float) -> list[Any]:
  """Writes a set into as few files as hold it, in its order; returns their paths.

  Raises:
    ValueError: a piece that is larger than a file may be.
  """
  files, room = [], 0.0
  for piece in pieces:
    if piece.size > limit - OVERHEAD:
      raise ValueError(f'{piece.name} of {name} has {piece.size:,} bytes; a file may have {limit:,.0f}')
    if piece.size > room:
      files.append([])
      room = limit - OVERHEAD
    files[-1].append(piece)
    room -= piece.size
  folder.mkdir(parents=True, exist_ok=True)
  paths = []
  for number, content in enumerate(files, 1):
    path = folder / f'{name}-{number}-of-{len(files)}.zip'
    manifest = {'set': name, 'number': number, 'count': len(files), 'about': about}
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_STORED) as archive:
      archive.writestr(MANIFEST, json.dumps(manifest))
      for piece in content:
        archive.writestr(piece.name, piece.content)
    paths.append(path)
  return paths


def unpack(files: Sequence[pathlib.Path], output: pathlib.Path) -> dict[str, Any]:
  """Unpacks files, and says what of each set is there by now: `{'cifar': {'numbers': [1], 'count': 2}}`.

  Raises:
    ValueError: a file that came out otherwise than it went in.
  """
  output.mkdir(parents=True, exist_ok=True)
  state_file = output / STATE
  state = json.loads(state_file.read_text()) if state_file.is_file() else {}
  for path in files:
    with zipfile.ZipFile(path) as archive:
      manifest = json.loads(archive.read(MANIFEST))
      name, folder = manifest['set'], output / SETS[manifest['set']]
      there = state.setdefault(name, {'numbers': [], 'count': manifest['count']})
      if manifest['number'] in there['numbers']:
        continue
      folder.mkdir(parents=True, exist_ok=True)
      {'cifar': unpack_cifar, 'cars': unpack_cars, 'weights': unpack_weights}[name](archive, folder)  # checks CRCs
    there['numbers'] = sorted([*there['numbers'], manifest['number']])
    if len(there['numbers']) == there['count']:
      if name == 'weights':
        join_weights(folder)
      for file, digest in manifest['about'].get('sha256', {}).items():
        if sha256((folder / file).read_bytes()) != digest:
          raise ValueError(f'{folder / file} is damaged')
    state_file.write_text(json.dumps(state) + '\n')
  return state


def archives(places: Sequence[str | pathlib.Path]) -> list[pathlib.Path]:
  """The packed files among some paths, and in folders among them."""
  found = []
  for place in map(pathlib.Path, places):
    found += sorted(place.glob('*-of-*.zip')) if place.is_dir() else [place]
  return found


def where(folder: pathlib.Path, name: str) -> pathlib.Path | str:
  """The unpacked folder of a set that is whole, or in words why there is none."""
  state_file = folder / STATE
  state = json.loads(state_file.read_text()).get(name) if state_file.is_file() else None
  if state and len(state['numbers']) < state['count']:
    return f'of {name}, {len(state["numbers"])} of {state["count"]} files are unpacked'
  place = folder / SETS[name]
  return place if place.is_dir() else f'{folder} holds no {SETS[name]}'
