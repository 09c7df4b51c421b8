import numpy as np
import pytest

from dnt.reporting import confusion


def test_of_many_classes_only_the_cells_that_are_not_zero_are_kept():
  matrix = np.zeros((2001, 2001), np.int32)
  matrix[3, 5], matrix[3, 2000], matrix[7, 7] = 4, 1, 9
  kept = {'true': [3, 3, 7], 'predicted': [5, 2000, 7], 'count': [4, 1, 9]}
  assert confusion.to_json(matrix) == kept
  listed = np.eye(2000, dtype=np.int32)
  assert confusion.to_json(listed) == listed.tolist()
  for stored in (matrix, kept):
    assert [column.tolist() for column in confusion.cells(stored)] == [*kept.values()]


@pytest.mark.parametrize('filled', [0, 1])
def test_neighboring_classes_are_added(filled):
  matrix = filled * np.arange(25).reshape(5, 5)
  expected = filled * np.array([[12, 20, 13], [52, 60, 33], [41, 45, 24]])  # [[0 + 1 + 5 + 6, ...
  np.testing.assert_array_equal(confusion.blocks(matrix, 5, 2), expected)
  np.testing.assert_array_equal(confusion.blocks(matrix.tolist(), 5, 2), expected)
