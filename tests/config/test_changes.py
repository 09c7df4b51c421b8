"""Which differences between two configs are changes."""

import copy
import pathlib

import pytest

from dnt import errors
from dnt.config import changes, schema


def found(tiny, **other):
  """The changed keys of `data` and `optim` between a config and one with other values in these sections."""
  new = copy.deepcopy(tiny)
  for name, values in other.items():
    new[name].update(values)
  return [change.key for change in changes.find(tiny, new)]


def test_an_option_without_an_effect_has_not_changed(tiny):
  assert found(tiny, clip={'threshold': 0.5}) == []
  assert found(tiny, clip={'threshold': 0.5, 'name': 'value'}) == ['clip.name', 'clip.threshold']
  assert found(tiny, optim={'b2': 0.9}) == []
  assert found(tiny, train={'epochs': 3.0}) == []
  tiny.train.steps = None
  assert found(tiny, train={'epochs': 3.0}) == ['train.epochs']


@pytest.mark.parametrize(
  ('old', 'new', 'same'),
  [
    ('folder:/here', 'folder:/there', True),
    ('folder:/here', 'folder', True),
    ('folder:/here', 'cars:/here', False),
    ('tfds:mnist', 'tfds:cifar10', False),
    ('digits', 'synthetic', False),
  ],
)
def test_the_path_of_a_folder_is_not_its_data(tiny, old, new, same):
  tiny.data.source = old
  assert (found(tiny, data={'source': new}) == []) == same


def test_numbers_that_were_measured_may_differ_in_their_last_digits(tiny):
  tiny.data.mean, tiny.data.std = (0.5, 0.25), (0.1, 0.2)
  assert found(tiny, data={'mean': (0.5 + 1e-15, 0.25)}) == []
  assert found(tiny, data={'mean': (0.5001, 0.25)}) == ['data.mean']
  assert found(tiny, data={'mean': (0.5,)}) == ['data.mean']
  assert found(tiny, optim={'weight_decay': 1.001e-4}) == ['optim.weight_decay']


@pytest.mark.parametrize(
  ('old', 'new', 'same'),
  [
    ({'width': 4, 'depth': 2}, {'depth': 2, 'width': 4}, True),
    ({'widths': [4, 2]}, {'widths': (4, 2)}, True),
    ({'widths': (4, 2)}, {'widths': (2, 4)}, False),
    ({'stages': {'stem': 4, 'body': 4}}, {'stages': {'body': 4, 'stem': 4}}, False),
    ({'width': 4}, {}, False),
  ],
)
def test_the_order_of_the_arguments_of_a_module_says_nothing_but_within_them(tiny, old, new, same):
  tiny.model.update({'name': 'own:Net', 'options': old})
  assert found(tiny, model={'options': new}) == ([] if same else ['model.options'])


def test_the_flag_that_is_offered_is_a_word_of_a_shell():
  refused = changes.Change('optim.momentum', 0.9, 0.8, schema.REFUSE)
  with pytest.raises(errors.InputError) as raised:
    changes.check([refused], (), pathlib.Path('runs/my run'))
  assert "--config.train.init_from='runs/my run' starts from" in str(raised.value)
