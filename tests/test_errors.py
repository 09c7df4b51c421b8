from dnt import errors


def test_unknown_names_the_nearest_and_lists_the_valid_ones():
  error = errors.unknown('norm', 'bach_norm', ['layer_norm', 'batch_norm'])
  assert isinstance(error, errors.InputError)
  assert str(error) == "unknown norm 'bach_norm'; did you mean 'batch_norm'? Valid: batch_norm, layer_norm"


def test_unknown_guesses_nothing_where_nothing_is_near():
  assert str(errors.unknown('model', 'xyz', ('plain', 'mlp'))) == "unknown model 'xyz'. Valid: mlp, plain"


def test_unknown_among_many_lists_the_nearest_alone():
  message = str(errors.unknown('config key', 'train.stepz', ['train.steps', *(f'model.option{i}' for i in range(60))]))
  assert message.startswith("unknown config key 'train.stepz'; did you mean 'train.steps'? Valid: train.steps, ")
  assert message.endswith(' and 56 more') and message.count(', ') == 4


def test_unknown_with_nothing_to_choose_from():
  assert str(errors.unknown('split', 'test', [])) == "unknown split 'test'. Valid: none"


def test_the_two_errors_are_told_apart():
  assert not issubclass(errors.InputError, errors.RunError) and not issubclass(errors.RunError, errors.InputError)
