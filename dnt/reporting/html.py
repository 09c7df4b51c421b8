"""Builds HTML pages that need no other file and no network access."""

import base64
import html
from collections.abc import Iterable, Mapping, Sequence

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em; color: #222; }
h1, h2 { font-weight: 600; line-height: 1.2; } h2 { margin-top: 2em; }
table { border-collapse: collapse; } td, th { padding: 2px 16px 2px 0; text-align: left; vertical-align: top; }
tr + tr { border-top: 1px solid #ddd; } td { font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
pre { font-size: 13px; line-height: 1.35; overflow-x: auto; background: #f6f6f6; padding: 12px; }
img { max-width: 100%; } .narrow { max-width: 640px; }
"""


def page(title: str, parts: Iterable[str]) -> str:
  """Returns the whole page.

  Args:
    title: the heading of the page, as text.
    parts: HTML, one part after the other.
  """
  head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{STYLE}</style>'
  top = ['<!DOCTYPE html>', f'<html lang="en"><head>{head}</head>', f'<body><h1>{html.escape(title)}</h1>']
  return '\n'.join([*top, *parts, '</body></html>']) + '\n'


def heading(text: str) -> str:
  """Returns a heading within the page."""
  return f'<h2>{html.escape(text)}</h2>'


def facts(rows: Mapping[str, str]) -> str:
  """Returns a table of names and their values, as text."""
  cells = [f'<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>' for name, value in rows.items()]
  return f'<table>{"".join(cells)}</table>'


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
  """Returns a table with a header; cells are text."""
  lines = [''.join(f'<th>{html.escape(cell)}</th>' for cell in header)]
  lines += [''.join(f'<td>{html.escape(cell)}</td>' for cell in row) for row in rows]
  return f'<table>{"".join(f"<tr>{line}</tr>" for line in lines)}</table>'


def text(content: str) -> str:
  """Returns preformatted lines of text."""
  return f'<pre>{html.escape(content)}</pre>'


def image(caption: str, png: bytes, narrow: bool = False) -> str:
  """Returns an image embedded in the page.

  Args:
    caption: alternative text, for those who cannot see it.
    png: the contents of the PNG file.
    narrow: show it at most 640 pixels wide.
  """
  kind = ' class="narrow"' if narrow else ''
  return f'<img{kind} alt="{html.escape(caption)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'
