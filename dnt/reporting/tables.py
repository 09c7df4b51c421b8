"""Formats tables of strings, as aligned text and as Markdown. The first row is the header."""

from collections.abc import Sequence


def text(rows: Sequence[Sequence[str]]) -> str:
  """Aligns the columns, two spaces apart: the first to the left, the others, which hold numbers, to the right.

  A last column without a title holds remarks and is aligned to the left. No line ends with spaces.
  """
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  left = {0, *({len(widths) - 1} if not rows[0][-1] else ())}

  def line(row):
    cells = zip(row, widths, strict=True)
    return '  '.join(
      cell.ljust(width) if column in left else cell.rjust(width) for column, (cell, width) in enumerate(cells)
    )

  return '\n'.join(line(row).rstrip() for row in rows)


def markdown(rows: Sequence[Sequence[str]]) -> str:
  """Formats a table in Markdown; a '|' within a cell, which would end the cell, becomes '/'."""
  header, *others = rows
  lines = [header, ['---'] * len(header), *others]
  return '\n'.join(f'| {" | ".join(cell.replace("|", "/") for cell in line)} |' for line in lines)
