import hashlib
import json
import os

import jax
import numpy as np
import pytest

from dnt.data import examples
from dnt.data.sources import folder, tfds
from dnt.data.transforms import images
from dnt.finetune import feature_keys, frozen_prefix
from dnt.training import datasets, experiment, open_options


def test_features_know_how_their_images_were_resized_and_older_ones_are_found(tiny):
  older = feature_keys._seen(tiny.data)
  assert 'eval_resize' not in older
  for augment, implied, other in (
    ('none', 'squash', 'center_crop'),
    ('resized_crop_flip', 'center_crop', 'squash'),
  ):
    tiny.data.augment, tiny.data.eval_resize = augment, implied
    assert feature_keys._seen(tiny.data) == {**older, 'augment': augment}
    tiny.data.eval_resize = other
    assert feature_keys._seen(tiny.data) == {**older, 'augment': augment, 'eval_resize': other}


def test_features_know_how_their_images_were_decoded_and_older_ones_are_found(tiny):
  older = feature_keys._seen(tiny.data)
  assert not {'image_bits', 'exif_rotation', 'decoding'} & older.keys()
  seen = set()
  for bits, rotated in ((None, False), (16, False), (12, False), (12, True), (16, True)):
    with tiny.data.ignore_type():
      tiny.data.image_bits, tiny.data.exif_rotation = bits, rotated
    seen.add(str(feature_keys._seen(tiny.data)))
  assert len(seen) == 4 and str(older) in seen


def test_features_of_cars_that_older_versions_turned_before_they_cut_them_out_are_others(tiny):
  for rotated in (False, True):
    tiny.data.crop_to_box, tiny.data.exif_rotation = False, rotated
    older = feature_keys._seen(tiny.data) | {'crop_to_box': True}
    tiny.data.crop_to_box = True
    assert (feature_keys._seen(tiny.data) == older) == (not rotated)


@pytest.mark.parametrize('name', ['a.tif', 'b.TIFF', 'c.png'])
def test_features_of_tiffs_that_older_versions_read_as_negatives_are_others(tmp_path, name):
  (tmp_path / 'first.png').write_bytes(b'1234')
  (tmp_path / name).write_bytes(b'12345')
  paths, labels = tuple(str(tmp_path / each) for each in ('first.png', name)), np.zeros(2, np.int32)
  store = folder.Files(paths, labels, images.USUAL)
  found = feature_keys._fingerprint(examples.Examples('folder:x', 'train', ('a',), (8, 8, 3), store, labels))
  older = [
    hashlib.sha256(bytes(8)).hexdigest(),
    [[path, os.stat(path).st_size, os.stat(path).st_mtime_ns] for path in paths],
  ]
  assert (found == older) == (name == 'c.png')


def test_parts_of_a_split_whose_labels_are_not_known_have_features_of_their_own_and_those_of_the_whole_are_found(
  tmp_path,
):
  path = tmp_path / 'records'
  path.write_bytes(b'12345')
  records = tfds.Records([b''] * 10, 'toy', 'image', 'label', 3, images.USUAL, (str(path),), range(10))

  def of(store):
    split = examples.Examples('tfds:toy', 'train[-3:]', ('a', 'b'), (8, 8, 3), store, None)
    return json.dumps(feature_keys._fingerprint(split))

  assert of(records) == json.dumps([None, [[str(path), 5, path.stat().st_mtime_ns]]]), 'as of older versions'
  parts = records.part(7, 10), records.part(3, 6), records.part(0, 3), records.take(np.array([9, 8, 7]))
  assert len({of(each) for each in (records, *parts)}) == 5
  assert of(records.take(np.array([7, 8, 9]))) == of(parts[0])


@pytest.mark.parametrize('augment', ['none', 'pad_crop_flip'])
def test_features_of_images_that_nothing_draws_are_those_of_every_seed(tiny, augment):
  tiny.data.augment, tiny.data.eval_resize = augment, 'center_crop'

  def of(seed, views):
    tiny.seed = seed
    data = datasets.load(tiny, ())
    run = experiment.make(open_options.resolve(tiny, data), data.spec)
    return feature_keys.key(3, feature_keys.split([], run, data.train, views))

  assert (of(0, 1) == of(1, 1)) == (augment == 'none')
  assert of(0, 0) == of(1, 0) != of(0, 1)


def test_features_of_another_precision_are_others(tiny):
  tiny.finetune.trainable = 'head'
  data = datasets.load(tiny, ())
  run = experiment.make(open_options.resolve(tiny, data), data.spec)
  prefix, variables = frozen_prefix.find(run), run.init_variables()
  usual = feature_keys.network(prefix, variables)
  assert len(usual) == 4, 'as of older versions'
  with jax.default_matmul_precision('bfloat16'):
    assert feature_keys.network(prefix, variables) == [*usual, ['cpu', 'bfloat16']]
  assert feature_keys.network(prefix, variables) == usual
