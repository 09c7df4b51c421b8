from dnt.reporting import tables


def test_numbers_stand_to_the_right_and_remarks_to_the_left():
  rows = [('entry', 'n', 'loss', ''), ('a', '10', '0.5', 'saturated'), ('longer', '1', '12.25', '')]
  assert tables.text(rows).splitlines() == [
    'entry    n   loss',
    'a       10    0.5  saturated',
    'longer   1  12.25',
  ]


def test_a_last_column_with_a_title_holds_numbers():
  assert tables.text([('a', 'size'), ('b', '1')]) == 'a  size\nb     1'


def test_a_bar_does_not_end_a_cell_of_markdown():
  assert tables.markdown([('a', 'b'), ('x|y', '2')]) == '| a | b |\n| --- | --- |\n| x/y | 2 |'
