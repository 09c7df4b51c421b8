"""Images in folders."""

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def scans(tmp_path):
  """Folders of images of different sizes, two classes; gray, coloured and with a palette."""
  draw = np.random.default_rng(0)
  for label, name in enumerate(('cat', 'dog')):
    folder = tmp_path / 'scans' / name
    folder.mkdir(parents=True)
    for index in range(6):
      size = (int(draw.integers(9, 30)), int(draw.integers(9, 30)))
      shape = size if index % 2 else (*size, 3)
      pixels = draw.integers(100 * label, 100 * label + 100, shape, np.uint8)
      image = Image.fromarray(pixels)
      (image.convert('P') if index == 4 else image).save(folder / f'{index}.png')
  return tmp_path / 'scans'
