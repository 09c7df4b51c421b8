import logging
import unicodedata

import numpy as np
import pytest

from dnt import errors
from dnt.data import class_order, examples
from tests.data import loading

COMPOSED, DECOMPOSED = (unicodedata.normalize(form, 'café') for form in ('NFC', 'NFD'))


def split(names, labels=(0, 1, 2)):
  images = np.arange(len(labels), dtype=np.uint8).reshape(-1, 1, 1, 1)
  return examples.in_memory('mine', 'val', images, np.array(labels), names)


def named(source):
  return [source.class_names[label] for _, label in source]


@pytest.mark.parametrize(
  ('found', 'head'),
  [
    (('ant', 'bee', 'cow'), ('ant', 'bee', 'cow')),
    (('ant', 'bee', 'cow'), ('cow', 'ant', 'bee')),
    (('ant', 'bee', 'cow'), ('dog', 'cow', 'cat', 'bee', 'ant')),
    (('ant', 'bee', DECOMPOSED), (COMPOSED, 'bee', 'ant')),
    (('2', '0', '1'), ('0', '1', '2', '10')),
  ],
)
def test_labels_follow_the_names(found, head):
  aligned = class_order.align(split(found), head, 'the run')

  assert aligned.class_names == head
  assert named(aligned) == list(class_order.normalized(found))
  np.testing.assert_array_equal(aligned.images.ravel(), [0, 1, 2])


def test_what_is_brought_into_order_and_what_is_lacking_is_said_once(caplog):
  with caplog.at_level(logging.INFO, 'dnt'):
    for _ in range(2):
      class_order.align(split(('ant', 'bee', 'cow')), ('ant', 'bee', 'cow'), 'run 1')
      class_order.align(split(('ant', 'bee', 'cow')), ('cow', 'bee', 'eel', 'ant'), 'run 2')
  order, lacking = (record.getMessage() for record in caplog.records)
  assert 'order of run 2' in order
  assert 'no class eel' in lacking and 'run 2' in lacking


@pytest.mark.parametrize('found', [('ant', 'bee', 'z_cow'), ('0', '1', '2'), ('ANT', 'bee', 'cow')])
def test_other_names_are_refused_with_both_lists(found):
  new = [name for name in found if name not in ('ant', 'bee', 'cow')]
  missing = [name for name in ('ant', 'bee', 'cow') if name not in found]
  with pytest.raises(errors.InputError, match=f'the run.* [Nn]ew: {", ".join(new)}; missing: {", ".join(missing)}[.]'):
    class_order.align(split(found), ('ant', 'bee', 'cow'), 'the run')


def test_a_name_of_several_classes_of_the_head_is_refused_if_the_data_has_it():
  head = ('crane', 'ant', 'bee', 'crane')
  aligned = class_order.align(split(('ant', 'bee'), (0, 1)), head, 'the run')
  assert aligned.labels.tolist() == [1, 2]
  same = class_order.align(split(head, (0, 1, 2, 3)), head, 'the run')
  assert same.labels.tolist() == [0, 1, 2, 3], 'its own data'
  with pytest.raises(errors.InputError, match=r"'val' of mine .*'crane'.* the run .*\(0, 3\)"):
    class_order.align(split(('ant', 'crane'), (0, 1)), head, 'the run')


def test_a_head_without_names_takes_classes_in_their_order_and_says_so(caplog):
  source = split(('ant', 'bee', 'cow'))
  with caplog.at_level(logging.INFO, 'dnt'):
    assert class_order.align(source, (), 'an old run') is source
  assert 'an old run has no class names' in caplog.text


@pytest.mark.parametrize('placement', ['stream', 'device'])
def test_labels_that_are_stored_with_the_images_follow_too(data, prepared, make_image, placement):
  pytest.importorskip('tensorflow_datasets')
  folder = prepared([make_image(6, 5, seed=seed) for seed in range(8)], [0, 1, 2, 0, 1, 2, 0, 1])
  data.source, data.dir, data.placement = 'tfds:toy', str(folder), placement
  source = loading.load(data, 'train', 0)
  head = (*source.class_names[::-1], 'other')
  aligned = class_order.align(class_order.align(source, head, 'a run'), head[::-1], 'another')

  assert named(aligned) == named(source)
  assert named(aligned.part('train[:2]', 2, 5)) == named(source)[2:5]
