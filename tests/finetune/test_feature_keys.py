import json
import os
import pathlib

import jax
import numpy as np
import pytest

from dnt.data import examples
from dnt.data.sources import cars, folder, tfds
from dnt.data.transforms import images
from dnt.finetune import feature_files, feature_keys, frozen_prefix
from dnt.training import datasets, experiment, open_options


@pytest.fixture
def run(tiny):
  tiny.finetune.trainable = 'head'
  data = datasets.load(tiny, ())
  return experiment.make(open_options.resolve(tiny, data), data.spec)


def sharing(section, key_of):
  """The options of a section of a config of which features with another value have the key that they had."""
  before, same = key_of(), set()
  for name, value in section.items():
    with section.unlocked(), section.ignore_type():
      section[name] = f'another than {value}'
      same |= {name} if key_of() == before else set()
      section[name] = value
  assert key_of() == before
  return same


def test_another_option_of_the_data_gives_another_key_but_for_loading_and_what_the_images_say_themselves(run, tiny):
  source = datasets.load(tiny, ()).train
  same = sharing(run.config.data, lambda: feature_keys.key(feature_keys.split([], run, source, 0)))
  assert same == {'dir', 'workers', 'placement', 'hold_out', 'images_per_class'}


def test_another_option_of_the_network_gives_another_key_but_for_where_it_lies_and_how_it_trains(run):
  prefix, variables = frozen_prefix.find(run), run.init_variables()
  same = sharing(run.config.model, lambda: feature_keys.key(feature_keys.network(prefix, variables)))
  assert same == {'folder', 'norm_sync'}


def test_another_format_of_the_files_gives_another_key(monkeypatch):
  before = feature_keys.key(['a'])
  assert before == feature_keys.key(['a']) != feature_keys.key(['b'])
  monkeypatch.setattr(feature_files, 'FORMAT', feature_files.FORMAT + 1)
  assert feature_keys.key(['a']) != before


def test_files_are_known_by_their_names_sizes_and_times_and_their_labels_and_order(tmp_path):
  paths, labels = tuple(str(tmp_path / name) for name in ('a.png', 'b.png')), np.array([0, 1], np.int32)
  for path in paths:
    pathlib.Path(path).write_bytes(b'1234')

  def of(paths, labels):
    store = folder.Files(paths, labels, images.USUAL)
    split = examples.Examples('folder:x', 'train', ('a', 'b'), (8, 8, 3), store, labels)
    return json.dumps(feature_keys._fingerprint(split))

  first = of(paths, labels)
  assert of(paths, labels) == first
  found = {first, of(paths[::-1], labels), of(paths, labels[::-1]), of(paths[:1], labels[:1])}
  os.utime(paths[0], ns=(1, 1))
  found.add(of(paths, labels))
  pathlib.Path(paths[0]).write_bytes(b'12345')
  os.utime(paths[0], ns=(1, 1))
  found.add(of(paths, labels))
  assert len(found) == 6


def test_files_cropped_to_other_boxes_have_features_of_their_own(tmp_path):
  paths, labels = (str(tmp_path / 'a.png'),), np.array([0], np.int32)
  pathlib.Path(paths[0]).write_bytes(b'1234')

  def of(store):
    split = examples.Examples('cars:x', 'train', ('a', 'b'), (None, None, 3), store, labels)
    return feature_keys._fingerprint(split)

  boxes = [np.array([box]) for box in ((0, 8, 0, 8), (0, 8, 2, 8))]
  first, second = (of(cars.Boxed(paths, labels, images.USUAL, box)) for box in boxes)
  plain = of(folder.Files(paths, labels, images.USUAL))
  assert first != second and first == of(cars.Boxed(paths, labels, images.USUAL, boxes[0]))
  assert len(plain) == 5  # as it was before boxes counted


def test_parts_of_a_split_whose_labels_are_not_known_have_features_of_their_own(tmp_path):
  path = tmp_path / 'records'
  path.write_bytes(b'12345')
  records = tfds.Records([b''] * 10, 'toy', 'image', 'label', 3, images.USUAL, (str(path),), range(10))

  def of(store):
    split = examples.Examples('tfds:toy', 'train[-3:]', ('a', 'b'), (8, 8, 3), store, None)
    return json.dumps(feature_keys._fingerprint(split))

  parts = records.part(7, 10), records.part(3, 6), records.part(0, 3), records.take(np.array([9, 8, 7]))
  relabelled = records.relabelled(np.array([1, 0], np.int32))
  assert len({of(each) for each in (records, relabelled, *parts)}) == 6
  assert of(records.take(np.array([7, 8, 9]))) == of(parts[0])


@pytest.mark.parametrize('augment', ['none', 'pad_crop_flip'])
def test_features_of_images_that_nothing_draws_are_those_of_every_seed(tiny, augment):
  tiny.data.augment, tiny.data.eval_resize = augment, 'center_crop'

  def of(seed, views):
    tiny.seed = seed
    data = datasets.load(tiny, ())
    run = experiment.make(open_options.resolve(tiny, data), data.spec)
    return feature_keys.key(feature_keys.split([], run, data.train, views))

  assert (of(0, 1) == of(1, 1)) == (augment == 'none')
  assert of(0, 0) == of(1, 0) != of(0, 1)


def test_features_of_another_precision_are_others(run):
  prefix, variables = frozen_prefix.find(run), run.init_variables()
  usual = feature_keys.network(prefix, variables)
  with jax.default_matmul_precision('bfloat16'):
    assert feature_keys.network(prefix, variables) != usual
  assert feature_keys.network(prefix, variables) == usual
