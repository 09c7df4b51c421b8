"""Converts confusion matrices to JSON and back: of many classes, only the cells that are not 0."""

from typing import Any

import numpy as np

from dnt import workdir as workdir_lib

LISTED_CLASSES = 2000  # with more, hundreds of millions of numbers would be written at each evaluation


def to_json(matrix: np.ndarray) -> list[list[int]] | dict[str, list[int]]:
  """Returns a confusion matrix as files hold it.

  Args:
    matrix: int [classes, classes], true class by predicted.

  Returns:
    Its rows; above `LISTED_CLASSES` the lists `true`, `predicted` and `count` of the cells that are not 0, row by row.
  """
  if len(matrix) <= LISTED_CLASSES:
    return matrix.tolist()
  places = np.nonzero(matrix)
  return {name: column.tolist() for name, column in zip(workdir_lib.CELLS, (*places, matrix[places]), strict=True)}


def cells(matrix: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns true class, predicted class and count of the cells that are not 0, each int [cells].

  Args:
    matrix: rows, or a result of `to_json`.
  """
  if isinstance(matrix, dict):
    true, predicted, count = (np.array(matrix[name], int) for name in workdir_lib.CELLS)
  else:
    matrix = np.asarray(matrix)
    true, predicted = np.nonzero(matrix)
    count = matrix[true, predicted]
  return true, predicted, count


def blocks(matrix: Any, classes: int, together: int) -> np.ndarray:
  """Returns int [blocks, blocks], the sums over so many neighboring classes; see `cells` for `matrix`."""
  true, predicted, count = cells(matrix)
  side = -(-classes // together)
  result = np.zeros((side, side), np.int64)
  np.add.at(result, (true // together, predicted // together), count)
  return result
