"""Small files in the formats the sources read, written without the code under test."""

import json
import struct
import zlib

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def data():
  """A fresh `data` section of the config."""
  from dnt import config

  return config.default().data


@pytest.fixture
def make_image():
  """`make_image(height, width, channels=3, seed=0)`: a smooth random image, uint8."""

  def make(height, width, channels=3, seed=0):
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, channels), np.uint8)
    shape = (width, height)
    image = Image.fromarray(coarse[..., 0] if channels == 1 else coarse).resize(shape, Image.Resampling.BICUBIC)
    return np.asarray(image).reshape(height, width, channels)

  return make


@pytest.fixture
def class_folders(tmp_path, make_image):
  """`class_folders({'train/cat': 3, ...})`: a folder of JPEGs of differing sizes; image i of a folder has seed i."""

  def make(counts, root='pictures'):
    for path, count in counts.items():
      folder = tmp_path / root / path
      folder.mkdir(parents=True)
      for i in range(count):
        Image.fromarray(make_image(20 + i % 3, 24 - i % 2, seed=i)).save(folder / f'{i}.jpg')
    return tmp_path / root

  return make


@pytest.fixture
def deep_png():
  """`deep_png(values, sbit=None)`: [H, W] or [H, W, C] as the bytes of a 16-bit PNG; Pillow writes gray ones only."""

  def chunk(kind, content):
    return struct.pack('>I', len(content)) + kind + content + struct.pack('>I', zlib.crc32(kind + content))

  def make(values, sbit=None, exif=b''):
    height, width, channels = np.atleast_3d(values).shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b''.join(b'\0' + row.astype('>u2').tobytes() for row in values)
    return b''.join(
      [
        b'\x89PNG\r\n\x1a\n',
        chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, 16, kind, 0, 0, 0)),
        chunk(b'sBIT', bytes([sbit] * channels)) if sbit else b'',
        chunk(b'eXIf', exif) if exif else b'',
        chunk(b'IDAT', zlib.compress(rows)),
        chunk(b'IEND', b''),
      ]
    )

  return make


@pytest.fixture
def idx_bytes():
  """`idx_bytes(array)`: a uint8 array as the bytes of an IDX file."""

  def make(array):
    return struct.pack(f'>BBBB{array.ndim}I', 0, 0, 8, array.ndim, *array.shape) + array.tobytes()

  return make


@pytest.fixture
def prepared(tmp_path):
  """`prepared(images, labels, ...)`: a TFDS set 'toy' prepared as array_record, in two shards; returns its data dir."""

  def make(images, labels, names=('ant', 'bee', 'cat'), shape=None, file_format='array_record', dtype='uint8'):
    from array_record.python import array_record_module
    from tensorflow_datasets.proto import tf_example_pb2

    folder = tmp_path / 'tfds' / 'toy' / '1.0.0'
    folder.mkdir(parents=True)
    encoded = []
    for image, label in zip(images, labels, strict=True):
      path = tmp_path / 'one.png'
      Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(path)
      example = tf_example_pb2.Example()
      example.features.feature['image'].bytes_list.value.append(path.read_bytes())
      example.features.feature['label'].int64_list.value.append(int(label))
      encoded.append(example.SerializeToString())
    half = len(encoded) // 2
    for shard, records in enumerate((encoded[:half], encoded[half:])):
      writer = array_record_module.ArrayRecordWriter(
        str(folder / f'toy-train.{file_format}-{shard:05}-of-00002'), 'group_size:1'
      )
      for record in records:
        writer.write(record)
      writer.close()
    (folder / 'label.labels.txt').write_text('\n'.join(names) + '\n')
    sizes = [str(-1 if size is None else size) for size in shape or images[0].shape]
    features = 'tensorflow_datasets.core.features'
    (folder / 'features.json').write_text(
      json.dumps(
        {
          'pythonClassName': f'{features}.features_dict.FeaturesDict',
          'featuresDict': {
            'features': {
              'image': {
                'pythonClassName': f'{features}.image_feature.Image',
                'image': {'dtype': dtype, 'shape': {'dimensions': sizes}},
              },
              'label': {
                'pythonClassName': f'{features}.class_label_feature.ClassLabel',
                'classLabel': {'numClasses': str(len(names))},
              },
            }
          },
        }
      )
    )
    split = {
      'name': 'train',
      'filepathTemplate': '{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}',
      'numBytes': str(sum(map(len, encoded))),
      'shardLengths': [str(half), str(len(encoded) - half)],
    }
    items = {'items': [{'featureKey': 'image'}, {'featureKey': 'label'}]}
    (folder / 'dataset_info.json').write_text(
      json.dumps(
        {
          'name': 'toy',
          'version': '1.0.0',
          'fileFormat': file_format,
          'splits': [split],
          'supervisedKeys': {'tuple': items},
        }
      )
    )
    return tmp_path / 'tfds'

  return make
