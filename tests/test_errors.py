import re

from dnt import errors


def test_unknown_names_the_nearest_and_lists_the_valid_ones():
  error = errors.unknown('norm', 'bach_norm', ['layer_norm', 'batch_norm'])
  assert isinstance(error, errors.InputError)
  assert re.fullmatch(".*norm 'bach_norm'.* 'batch_norm'.* batch_norm, layer_norm", str(error))


def test_unknown_guesses_nothing_where_nothing_is_near():
  message = str(errors.unknown('model', 'xyz', ('plain', 'mlp')))
  assert "model 'xyz'" in message and message.endswith(' mlp, plain')
  assert message.count('plain') == message.count('mlp') == 1


def test_unknown_among_many_lists_the_nearest_alone():
  message = str(errors.unknown('config key', 'train.stepz', ['train.steps', *(f'model.option{i}' for i in range(60))]))
  assert re.search("config key 'train.stepz'.* 'train.steps'.* train.steps, ", message)
  assert message.endswith(' 56 more') and message.count(', ') == 4


def test_unknown_with_nothing_to_choose_from():
  assert re.fullmatch(".*split 'test'.* none", str(errors.unknown('split', 'test', [])))


def test_the_two_errors_are_told_apart():
  assert not issubclass(errors.InputError, errors.RunError) and not issubclass(errors.RunError, errors.InputError)
