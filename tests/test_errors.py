from dnt import errors


def test_unknown_names_the_nearest_and_lists_the_valid_ones():
  error = errors.unknown('norm', 'bach_norm', ['layer_norm', 'batch_norm'])
  assert isinstance(error, errors.InputError)
  assert str(error) == "unknown norm 'bach_norm'; did you mean 'batch_norm'? Valid: batch_norm, layer_norm"


def test_unknown_guesses_nothing_where_nothing_is_near():
  assert str(errors.unknown('model', 'xyz', ('plain', 'mlp'))) == "unknown model 'xyz'. Valid: mlp, plain"


def test_unknown_with_nothing_to_choose_from():
  assert str(errors.unknown('split', 'test', [])) == "unknown split 'test'. Valid: none"


def test_the_two_errors_are_told_apart():
  assert not issubclass(errors.InputError, errors.RunError) and not issubclass(errors.RunError, errors.InputError)
