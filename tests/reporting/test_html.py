import base64
from html import parser

from dnt.reporting import html


class _Page(parser.HTMLParser):
  """Checks that tags nest, and collects text and attributes."""

  def __init__(self):
    super().__init__()
    self.open, self.text, self.attributes = [], [], []

  def handle_starttag(self, tag, attrs):
    if tag not in ('meta', 'img'):
      self.open.append(tag)
    self.attributes += attrs

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    self.text.append(data)


def test_parts_make_a_page_and_text_stays_text():
  bad = '<b>&"'
  parts = [
    html.heading(bad),
    html.facts({bad: bad}),
    html.table([bad], [[bad], ['cell']]),
    html.text(bad),
    html.image(bad, b'png', narrow=True),
  ]
  page = _Page()
  page.feed(html.page(bad, parts))
  page.close()
  assert page.open == []
  assert page.text.count(bad) == 8  # twice the title, heading, fact and its name, header, cell, text
  assert ('alt', bad) in page.attributes and ('class', 'narrow') in page.attributes
  assert ('src', f'data:image/png;base64,{base64.b64encode(b"png").decode()}') in page.attributes
