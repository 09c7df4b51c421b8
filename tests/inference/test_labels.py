import numpy as np
import pytest

from dnt import errors, inference
from dnt.inference import labels


def test_a_folder_whose_name_several_classes_have_is_refused(trained, labelled_folders):
  network = inference.load(str(trained.workdir))
  network = network._replace(class_names=('crane', *network.class_names[1:-1], 'crane'))
  root = labelled_folders('class1', 'class2')
  assert list(labels.find(str(root), inference.find(str(root)), None, network).values()) == [1, 1, 2, 2]
  root = labelled_folders('crane')
  with pytest.raises(errors.InputError, match=r"'crane'.*\(0, 9\).* glob"):
    labels.find(str(root), inference.find(str(root)), None, network)


def test_a_network_without_class_names_takes_as_many_folders_in_their_order(trained, labelled_folders, caplog):
  root = labelled_folders(*(f'kind {index}' for index in range(10)))
  network = inference.load(str(trained.workdir))
  nameless = network._replace(named=False, class_names=tuple(f'class {index}' for index in range(10)))
  paths = inference.find(str(root))
  with caplog.at_level('INFO', 'dnt'):
    assert list(labels.find(str(root), paths, None, nameless).values()) == np.repeat(range(10), 2).tolist()
  assert 'no class names' in caplog.text
  assert labels.find(str(root), paths, None, network) == {}


def test_balanced_accuracy_weighs_the_classes_alike():
  """Of class a 3 of 4 images are right, of class b none of 1, and class c has none."""
  true = {'1': 0, '2': 0, '3': 0, '4': 0, '5': 1}
  found = labels.measure(true, {'1': 0, '2': 0, '3': 0, '4': 2, '5': 0, '6': 1}, 3)
  assert (found.accuracy, found.balanced_accuracy) == (0.6, 0.375)
