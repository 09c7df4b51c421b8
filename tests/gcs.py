"""A server of Google Cloud Storage's JSON API in this process: what gcsfs, TensorStore and Google's client ask of it.

It keeps the objects of one bucket in memory, and holds to the preconditions (`ifGenerationMatch`) that its clients set.
"""

import base64
import datetime
import http.server
import itertools
import json
import re
import struct
import sys
import threading
import urllib.parse
from typing import NamedTuple

BUCKET = 'test-bucket'
_OBJECT = rf'(?:/download|/upload)?(?:/storage/v1)?/b/{BUCKET}/o'


class Object(NamedTuple):
  """Holds an object: its bytes, its number among all that were written, and when it was."""

  content: bytes
  generation: int
  updated: str


class Server(http.server.ThreadingHTTPServer):
  """Serves the bucket at `url`, from a thread, within a `with`.

  Attributes:
    objects: the objects by name.
    failures: number of requests to answer with 503.
    requests: the method and the path of each request.
  """

  daemon_threads = True

  def __init__(self):
    super().__init__(('127.0.0.1', 0), _Handler)
    self.url = f'http://127.0.0.1:{self.server_address[1]}'
    self.objects: dict[str, Object] = {}
    self.failures, self.requests = 0, []
    self.lock = threading.Lock()
    self.uploads: dict[str, tuple[str, dict, bytes]] = {}
    self._generations = itertools.count(1_700_000_000_000_000)
    self._thread = threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True)

  def __enter__(self):
    self._thread.start()
    return self

  def __exit__(self, *error):
    self.shutdown()
    self._thread.join()
    super().__exit__(*error)

  def environment(self):
    """What makes the clients find the server; without the second, TensorStore asks Google for a bucket."""
    return {
      'STORAGE_EMULATOR_HOST': self.url,
      'TENSORSTORE_GCS_HTTP_URL': self.url,
      'GOOGLE_AUTH_TOKEN_FOR_TESTING': 'of-tests',
      'GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT': 'false',  # it asks Google of which kind the bucket is
    }

  def put(self, name, content):
    now = datetime.datetime.now(datetime.UTC).isoformat().replace('+00:00', 'Z')
    self.objects[name] = Object(content, next(self._generations), now)
    return self.objects[name]

  def names(self, folder):
    """The names of the objects in a folder, without it."""
    return {name.removeprefix(f'{folder}/') for name in self.objects if name.startswith(f'{folder}/')}

  def copy(self, folder, target):
    """Writes the objects in a folder to one on disk, and returns that."""
    for name in self.names(folder):
      (target / name).parent.mkdir(parents=True, exist_ok=True)
      (target / name).write_bytes(self.objects[f'{folder}/{name}'].content)
    return target

  def handle_error(self, request, client_address):
    if not isinstance(sys.exc_info()[1], ConnectionError):  # of a client that was killed
      super().handle_error(request, client_address)


class _Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = 'HTTP/1.1'
  disable_nagle_algorithm = True

  def log_message(self, *_):
    pass

  def do_GET(self):
    self._handle(self._get)

  def do_POST(self):
    self._handle(self._post)

  def do_PUT(self):
    self._handle(self._put)

  def do_DELETE(self):
    self._handle(self._delete)

  def _handle(self, answer):
    parsed = urllib.parse.urlsplit(self.path)
    self.query = {key: values[0] for key, values in urllib.parse.parse_qs(parsed.query).items()}
    self.body = self._read_body()
    with self.server.lock:
      self.server.requests.append((self.command, parsed.path))
      if self.server.failures > 0:
        self.server.failures -= 1
        return self._error(503)
      return answer(parsed.path)

  def _read_body(self):
    if self.headers.get('Transfer-Encoding') != 'chunked':
      return self.rfile.read(int(self.headers.get('Content-Length') or 0))
    parts = []
    while size := int(self.rfile.readline().split(b';')[0], 16):
      parts.append(self.rfile.read(size))
      self.rfile.readline()
    self.rfile.readline()
    return b''.join(parts)

  def _get(self, path):
    if re.fullmatch(rf'(/storage/v1)?/b/{BUCKET}', path):
      return self._json({'kind': 'storage#bucket', 'id': BUCKET, 'name': BUCKET, 'location': 'US'})
    if re.fullmatch(_OBJECT, path):
      return self._json(self._list())
    if not (match := re.fullmatch(rf'{_OBJECT}/(.+)', path)):
      return self._error(404)
    name = urllib.parse.unquote(match[1])
    found = self.server.objects.get(name)
    if found is None:
      return self._error(404)
    if problem := self._violated(found):
      return self._error(problem)
    if self.query.get('alt') != 'media' and not path.startswith('/download'):
      return self._json(_describe(name, found))
    return self._content(found)

  def _content(self, found):
    content, code, headers = found.content, 200, {'X-Goog-Generation': str(found.generation)}
    size = len(content)
    if match := re.fullmatch(r'bytes=(\d*)-(\d*)', self.headers.get('Range', '')):
      first = int(match[1]) if match[1] else max(size - int(match[2]), 0)
      last = min(int(match[2]), size - 1) if match[1] and match[2] else size - 1
      if first >= size:
        return self._send(416, b'', {'Content-Range': f'bytes */{size}'})
      content, code = content[first : last + 1], 206
      headers['Content-Range'] = f'bytes {first}-{last}/{size}'
    else:
      headers['X-Goog-Hash'] = f'crc32c={_crc32c(content)}'
    return self._send(code, content, {'Content-Type': 'application/octet-stream', **headers})

  def _list(self):
    pattern = re.escape(self.query.get('matchGlob', '**')).replace(r'\*\*', '.*').replace(r'\*', '[^/]*')
    prefix, delimiter = self.query.get('prefix', ''), self.query.get('delimiter', '')
    items, prefixes = [], set()
    for name, found in sorted(self.server.objects.items()):
      if not name.startswith(prefix) or not re.fullmatch(pattern, name) or name < self.query.get('startOffset', ''):
        continue
      if (end := self.query.get('endOffset')) and name >= end:
        continue
      inner, separator, _ = name.removeprefix(prefix).partition(delimiter) if delimiter else (name, '', '')
      if separator:
        prefixes.add(prefix + inner + delimiter)
      else:
        items.append(_describe(name, found))
    start, most = int(self.query.get('pageToken', 0)), int(self.query.get('maxResults', 1000))
    page = {'nextPageToken': str(start + most)} if start + most < len(items) else {}
    return {
      'kind': 'storage#objects',
      'items': items[start : start + most],
      'prefixes': sorted(prefixes) if start == 0 else [],
      **page,
    }

  def _post(self, path):
    if path == '/batch/storage/v1':
      return self._batch()
    if match := re.fullmatch(rf'{_OBJECT}/(.+)/(copyTo|rewriteTo|moveTo)(?:/b/{BUCKET})?/o/(.+)', path):
      source, verb, target = match.groups()
      return self._copy(urllib.parse.unquote(source), urllib.parse.unquote(target), verb == 'moveTo')
    if not re.fullmatch(rf'/upload(?:/storage/v1)?/b/{BUCKET}/o', path):
      return self._error(404)
    if 'upload_id' in self.query:
      return self._put(path)
    kind, name, content = self.query.get('uploadType'), self.query.get('name'), self.body
    if kind == 'multipart':
      boundary = b'--' + re.search(r'boundary="?([^";]+)', self.headers['Content-Type'])[1].encode()
      about, content = (part.split(b'\r\n\r\n', 1)[1] for part in self.body.split(boundary)[1:3])
      name, content = name or json.loads(about)['name'], content.removesuffix(b'\r\n')
    if kind == 'resumable':
      name = name or json.loads(content)['name']
      number = str(len(self.server.uploads))
      self.server.uploads[number] = (name, dict(self.query), b'')
      where = f'{self.server.url}/upload/storage/v1/b/{BUCKET}/o?uploadType=resumable&upload_id={number}'
      return self._send(200, b'', {'Location': where})
    return self._write(name, content)

  def _write(self, name, content):
    if problem := self._violated(self.server.objects.get(name)):
      return self._error(problem)
    return self._json(_describe(name, self.server.put(name, content)))

  def _put(self, path):
    """A part of an upload in parts."""
    del path  # gcsfs sends parts by POST
    name, query, before = self.server.uploads[self.query['upload_id']]
    content = before + self.body
    if self.headers['Content-Range'].endswith('/*'):
      self.server.uploads[self.query['upload_id']] = (name, query, content)
      return self._send(308, b'', {'Range': f'bytes=0-{len(content) - 1}'})
    self.query = query
    return self._write(name, content)

  def _copy(self, source, target, moves):
    if source not in self.server.objects:
      return self._error(404)
    written = self.server.put(target, self.server.objects[source].content)
    if moves:
      del self.server.objects[source]
    resource = _describe(target, written)
    return self._json({'kind': 'storage#rewriteResponse', 'done': True, 'resource': resource, **resource})

  def _delete(self, path):
    name = urllib.parse.unquote(re.fullmatch(rf'{_OBJECT}/(.+)', path)[1])
    return self._send(*self._remove(name), {})

  def _remove(self, name):
    found = self.server.objects.get(name)
    if found is None:
      return 404, b''
    if problem := self._violated(found):
      return problem, b''
    del self.server.objects[name]
    return 204, b''

  def _batch(self):
    """Several deletions in one request."""
    parts = []
    for number, match in enumerate(re.finditer(rb'DELETE (\S+)', self.body), 1):
      name = re.fullmatch(rf'{_OBJECT}/(.+)', urllib.parse.urlsplit(match[1].decode()).path)[1]
      code, _ = self._remove(urllib.parse.unquote(name))
      parts.append(
        f'--batch\r\nContent-Type: application/http\r\nContent-ID: <response-{number}>\r\n\r\n'
        f'HTTP/1.1 {code} {"No Content" if code == 204 else "Not Found"}\r\nContent-Length: 0\r\n\r\n\r\n'
      )
    self._send(200, (''.join(parts) + '--batch--').encode(), {'Content-Type': 'multipart/mixed; boundary=batch'})

  def _violated(self, found):
    """The code of an answer if a precondition of the request does not hold."""
    now = found.generation if found else 0
    if 'ifGenerationMatch' in self.query and int(self.query['ifGenerationMatch']) != now:
      return 412
    if 'ifGenerationNotMatch' in self.query and int(self.query['ifGenerationNotMatch']) == now:
      return 304
    return None

  def _json(self, value):
    self._send(200, json.dumps(value).encode(), {'Content-Type': 'application/json'})

  def _error(self, code):
    if code == 304:
      return self._send(code, b'', {})
    message = json.dumps({'error': {'code': code, 'message': f'the answer is {code}'}}).encode()
    return self._send(code, message, {'Content-Type': 'application/json'})

  def _send(self, code, content, headers):
    self.send_response(code)
    for name, value in headers.items():
      self.send_header(name, value)
    if code not in (204, 304):
      self.send_header('Content-Length', str(len(content)))
    self.end_headers()
    self.wfile.write(content)


def _describe(name, found):
  return {
    'kind': 'storage#object',
    'id': f'{BUCKET}/{name}/{found.generation}',
    'name': name,
    'bucket': BUCKET,
    'generation': str(found.generation),
    'metageneration': '1',
    'size': str(len(found.content)),
    'contentType': 'application/octet-stream',
    'timeCreated': found.updated,
    'updated': found.updated,
    'crc32c': _crc32c(found.content),
    'etag': str(found.generation),
  }


def _crc32c(content):
  import google_crc32c  # which comes with gcsfs

  return base64.b64encode(struct.pack('>I', google_crc32c.value(content))).decode()
