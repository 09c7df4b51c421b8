"""The images of the benchmark of transfer, which all of its parts read."""

import pytest
from absl import flags
from absl.testing import flagsaver

from benchmarks import transfer


@pytest.fixture
def given():
  """Sets flags, as a command line would."""
  with flagsaver.flagsaver():
    flags.FLAGS.mark_as_parsed()
    yield lambda **values: [setattr(flags.FLAGS, name, value) for name, value in values.items()]
  flags.FLAGS.unparse_flags()


def test_images_are_generated_where_no_folder_is_given_and_read_as_a_split(given):
  given(examples=3)
  with transfer.images_given():
    source = transfer.examples(4)
    images = [source[index] for index in range(4)]
  assert [(image.size, int(label)) for image, label in images] == [((500, 375), index % 2) for index in range(4)]
  assert transfer.IMAGES.value == 256  # of the host's turn, and no folder


def test_a_folder_that_is_given_is_read(given, tmp_path):
  given(examples=2)
  transfer.generate(tmp_path)
  given(folder=str(tmp_path))
  with transfer.images_given():
    assert transfer.paths() == [str(tmp_path / f'{index}.jpg') for index in range(2)]
