import io
import re
import struct
import zlib
from concurrent import futures

import numpy as np
import pytest
from PIL import Image

from dnt import errors
from dnt.data import order
from dnt.data.transforms import images


def decoded(*args, **options):
  return images.to_array(images.decode(*args, **options))


def encode(image, format='PNG'):
  buffer = io.BytesIO()
  image.save(buffer, format)
  return buffer.getvalue()


@pytest.mark.parametrize('mode', ['RGB', 'L', 'RGBA', 'P', 'CMYK', '1', 'LA'])
def test_every_8_bit_mode_becomes_rgb(make_image, mode):
  image = Image.fromarray(make_image(9, 7)).convert(mode)
  found = decoded(encode(image, 'TIFF'), 'x')

  np.testing.assert_array_equal(found, np.asarray(image.convert('RGB')))
  assert found.dtype == np.uint8


def test_gray_stays_gray_with_one_channel(make_image):
  gray = make_image(9, 7, 1)

  np.testing.assert_array_equal(decoded(encode(Image.fromarray(gray[..., 0])), 'x', channels=1), gray)
  np.testing.assert_array_equal(decoded(encode(Image.fromarray(gray[..., 0])), 'x'), np.repeat(gray, 3, -1))


@pytest.mark.parametrize('damage', [lambda b: b[: len(b) // 2], lambda b: b'no image', lambda b: b'', lambda b: b[:30]])
@pytest.mark.parametrize('format', ['JPEG', 'PNG'])
def test_a_damaged_image_is_named(make_image, damage, format):
  with pytest.raises(errors.InputError, match=r'cannot read .* cat\.jpg .*remove it'):
    images.decode(damage(encode(Image.fromarray(make_image(40, 40)), format)), 'cat.jpg')


@pytest.mark.parametrize(('content', 'reason'), [(b'', '0 bytes'), (b'<html>', 'no format')])
def test_a_file_that_is_no_image_says_so(tmp_path, content, reason):
  path = tmp_path / 'cat.jpg'
  path.write_bytes(content)
  for source in (str(path), content):
    with pytest.raises(errors.InputError) as error:
      images.decode(source, 'cat.jpg')
    assert re.search(rf'cannot read .* cat\.jpg .*{reason}.* remove it', str(error.value))


@pytest.mark.parametrize('format', ['PNG', 'TIFF', 'PPM'])
@pytest.mark.parametrize('channels', [1, 3])
def test_of_16_bits_the_upper_8_are_kept(format, channels):
  values = np.random.default_rng(0).integers(0, 2**16, (5, 4), np.uint16)
  values[0, :2] = 0, 2**16 - 1
  found = decoded(encode(Image.fromarray(values), format), 'scan', channels)

  assert found.dtype == np.uint8
  np.testing.assert_array_equal(found, np.repeat((values >> 8)[..., None], channels, -1))


@pytest.mark.parametrize('shape', [(5, 4), (5, 4, 2), (5, 4, 3), (5, 4, 4)])
@pytest.mark.parametrize('bits', [8, 12, 16])
def test_of_16_bit_channels_that_use_fewer_the_upper_8_are_kept(deep_png, tmp_path, shape, bits):
  values = np.random.default_rng(0).integers(0, 2**bits, shape)
  values[0, 0] = 2**bits - 1
  encoded, color = deep_png(values), values[..., :1] if shape[2:] == (2,) else np.atleast_3d(values)[..., :3]
  found = decoded(encoded, 'scan', how=images.Decoding(bits))

  np.testing.assert_array_equal(found, np.broadcast_to(color >> (bits - 8), (5, 4, 3)))
  (tmp_path / 'scan.png').write_bytes(encoded)
  assert images.largest_value(str(tmp_path / 'scan.png')) == 2**bits - 1


@pytest.mark.parametrize('format', ['PNG', 'JPEG', 'WEBP', 'TIFF'])
def test_large_images_are_read_and_pillows_limit_stays(make_image, tmp_path, monkeypatch, format):
  monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 1200)  # Pillow warns above it, and refuses twice as many
  array = make_image(50, 60)
  Image.fromarray(array).save(tmp_path / 'scan', format)
  encoded = (tmp_path / 'scan').read_bytes()
  with futures.ThreadPoolExecutor(8) as pool:
    for image in pool.map(lambda _: images.decode(encoded, 'scan'), range(100)):
      assert image.size == (60, 50)
      if format in ('PNG', 'TIFF'):
        np.testing.assert_array_equal(image, array)
  assert images.largest_value(str(tmp_path / 'scan')) is None
  image, generator = images.decode(encoded, 'scan'), np.random.default_rng(0)
  assert images.random_resized_crop(image, generator, (8, 8), 0.9).size == (8, 8)
  assert images.resize_center_crop(image, None, (48, 58), 1).size == (58, 48)
  with pytest.raises(errors.InputError):
    images.decode(encoded[:30], 'scan')
  assert Image.MAX_IMAGE_PIXELS == 1200


@pytest.mark.filterwarnings('ignore')  # of Pillow, before dnt refuses
def test_more_pixels_than_memory_holds_are_refused_before_they_are_decoded(make_image, monkeypatch):
  encoded = encode(Image.fromarray(make_image(50, 60)))
  monkeypatch.setattr(images, 'LARGEST', 3000)
  images.decode(encoded, 'scan')
  monkeypatch.setattr(images, 'LARGEST', 2999)
  with pytest.raises(errors.InputError, match='read the image scan .* 60 x 50 pixels, more than 2,999.*; replace'):
    images.decode(encoded, 'scan')


def tiff(values, order, compressed, planar=1):
  """An RGB image as a TIFF of 16 bits, which Pillow does not write."""
  height, width, channels = values.shape
  pixels = values.astype(f'{order}u2').tobytes()
  pixels = zlib.compress(pixels) if compressed else pixels
  entries = {256: width, 257: height, 258: channels, 259: 8 if compressed else 1, 262: 2, 273: 0, 277: channels}
  entries |= {278: height, 279: len(pixels), 284: planar}
  after = 8 + 2 + 12 * len(entries) + 4
  entries[273] = after + 2 * channels
  head = struct.pack(f'{order}2sHIH', b'II' if order == '<' else b'MM', 42, 8, len(entries))
  for tag, value in entries.items():
    many = tag == 258
    head += struct.pack(f'{order}HHII', tag, 3 if many else 4, channels if many else 1, after if many else value)
  return head + struct.pack(f'{order}I{channels}H', 0, *[16] * channels) + pixels


@pytest.mark.parametrize('order', ['<', '>'])
@pytest.mark.parametrize('compressed', [False, True])
def test_12_bit_colours_of_a_tiff(order, compressed):
  values = np.random.default_rng(0).integers(0, 2**12, (5, 4, 3))
  encoded = tiff(values, order, compressed)

  np.testing.assert_array_equal(decoded(encoded, 'scan', how=images.Decoding(12)), values >> 4)
  np.testing.assert_array_equal(decoded(encoded, 'scan'), values >> 8)


@pytest.mark.parametrize('compressed', [False, True])
@pytest.mark.parametrize('bits', [12, 16])
def test_planes_of_16_bits_are_refused(tmp_path, bits, compressed):
  """Pillow gives noise, or of both bytes the upper one."""
  path = tmp_path / 'scan.tif'
  path.write_bytes(tiff(np.zeros((5, 4, 3)), '<', compressed, planar=2))
  with pytest.raises(errors.InputError, match=r' scan\.tif .*separate planes of 16 bits; save it interleaved'):
    images.decode(path.read_bytes(), 'scan.tif', how=images.Decoding(bits))
  with pytest.raises(errors.InputError, match='separate planes'):
    images.largest_value(str(path))


def test_a_single_plane_is_read():
  values, buffer = np.random.default_rng(0).integers(0, 2**16, (5, 4), np.uint16), io.BytesIO()
  Image.fromarray(values).save(buffer, 'TIFF', compression='tiff_deflate', tiffinfo={284: 2})
  assert Image.open(buffer).tag_v2[284] == 2
  np.testing.assert_array_equal(decoded(buffer.getvalue(), 'scan', 1)[..., 0], values >> 8)


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('bits', [8, 12, 16])
def test_a_gray_tiff_in_which_0_is_white_is_no_negative(tmp_path, bits, channels):
  values = np.random.default_rng(0).integers(0, 2**bits, (5, 4))
  values[0, :2] = 0, 2**bits - 1
  black, white = (struct.pack('<HHII', 262, 3, 1, photometric) for photometric in (1, 0))
  for dtype in (np.uint16, *([np.uint8] if bits == 8 else [])):  # Pillow inverts 8 bits itself
    encoded = encode(Image.fromarray(values.astype(dtype)), 'TIFF')
    assert encoded.count(black) == 1
    (tmp_path / 'scan.tif').write_bytes(encoded.replace(black, white))
    found = decoded(str(tmp_path / 'scan.tif'), 'scan', channels, images.Decoding(bits))
    np.testing.assert_array_equal(found, np.repeat(255 - (values >> (bits - 8))[..., None], channels, -1))
  (tmp_path / 'scan.tif').write_bytes(encode(Image.fromarray(values.astype(np.uint16)), 'TIFF').replace(black, white))
  assert images.largest_value(str(tmp_path / 'scan.tif')) == 2**bits - 1, 'as it is stored'


@pytest.mark.parametrize('shape', [(5, 4), (5, 4, 3)])
def test_a_value_beyond_the_bits_is_named_with_the_option(deep_png, shape):
  with pytest.raises(errors.InputError, match=r' scan\.png .*value 4096.* 12 bits of config\.data\.image_bits'):
    images.decode(deep_png(np.full(shape, 4096)), 'scan.png', how=images.Decoding(12))


def test_images_of_8_bits_do_not_depend_on_the_bits_of_others(make_image):
  for mode in ('RGB', 'L', 'RGBA', 'P'):
    encoded = encode(Image.fromarray(make_image(9, 7)).convert(mode))
    np.testing.assert_array_equal(decoded(encoded, 'x', how=images.Decoding(12)), decoded(encoded, 'x'))


@pytest.mark.parametrize('format', ['BMP', 'GIF', 'JPEG', 'JPEG2000', 'PCX', 'PPM', 'TGA', 'TIFF', 'WEBP'])
def test_no_format_of_8_bits_depends_on_the_bits_of_others(make_image, format):
  encoded = encode(Image.fromarray(make_image(9, 7)), format)
  np.testing.assert_array_equal(decoded(encoded, 'x', how=images.Decoding(12)), decoded(encoded, 'x'))


@pytest.mark.parametrize('bits', [12, 16])
def test_a_qoi_is_read(make_image, bits):
  image = make_image(9, 7)
  pixels = b''.join(b'\xfe' + pixel.tobytes() for pixel in image.reshape(-1, 3))
  encoded = b'qoif' + struct.pack('>IIBB', 7, 9, 3, 0) + pixels + bytes(7) + b'\1'
  np.testing.assert_array_equal(decoded(encoded, 'x', how=images.Decoding(bits)), image)


@pytest.mark.parametrize(
  ('value', 'reason'), [(70_000, 'more than 16 bits a channel'), (-7, 'negative values, down to -7')]
)
@pytest.mark.parametrize('bits', [16, 12])
def test_more_than_16_bits_and_negative_values_are_refused(value, reason, bits):
  content = encode(Image.fromarray(np.full((4, 4), value, np.int32)), 'TIFF')
  with pytest.raises(errors.InputError, match=rf' scan\.tif holds {reason}; convert it'):
    images.decode(content, 'scan.tif', how=images.Decoding(bits))


def test_a_tiff_in_lab_becomes_rgb_and_gray():
  lab = Image.frombytes('LAB', (2, 1), bytes((255, 0, 0, 128, 0, 0)))  # white, and a gray of half its lightness
  colours, gray = (np.asarray(images.decode(encode(lab, 'TIFF'), 'x', channels)).astype(int) for channels in (3, 1))
  np.testing.assert_allclose(colours[0], [[255] * 3, [119] * 3], atol=2)
  np.testing.assert_allclose(gray[0], [255, 119], atol=2)


def test_floats_are_refused():
  floats = Image.fromarray(np.ones((4, 4), np.float32))
  with pytest.raises(errors.InputError, match=r' scan\.tif .*mode F.* convert'):
    images.decode(encode(floats, 'TIFF'), 'scan.tif')


@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize('transparency', [3, bytes([0, 128, 255])])
def test_a_transparent_palette_shows_its_colors(make_image, transparency):
  """What torchvision's loader shows: Pillow's conversion to RGB, without its warning."""
  image = Image.fromarray(make_image(9, 7)).quantize(8)
  buffer = io.BytesIO()
  image.save(buffer, 'PNG', transparency=transparency)
  np.testing.assert_array_equal(decoded(buffer.getvalue(), 'x'), np.asarray(image.convert('RGB')))


def test_a_cmyk_jpeg_becomes_rgb(make_image):
  encoded = encode(Image.fromarray(make_image(16, 16)).convert('CMYK'), 'JPEG')
  found = decoded(encoded, 'x')
  np.testing.assert_array_equal(found, np.asarray(Image.open(io.BytesIO(encoded)).convert('RGB')))
  assert np.abs(found.astype(int) - make_image(16, 16)).mean() < 8


def test_the_orientation_in_exif_is_left_alone(make_image):
  image = Image.fromarray(make_image(9, 7))
  buffer = io.BytesIO()
  image.save(buffer, 'PNG', exif=exif_of(6))
  np.testing.assert_array_equal(decoded(buffer.getvalue(), 'x'), make_image(9, 7))


def exif_of(orientation):
  exif = Image.Exif()
  exif[0x0112] = orientation
  return exif


# What the image shows, by orientation: the meaning of the tag in the EXIF standard, as operations on its pixels.
UPRIGHT = {
  1: lambda x: x,
  2: lambda x: x[:, ::-1],
  3: lambda x: x[::-1, ::-1],
  4: lambda x: x[::-1],
  5: lambda x: x.swapaxes(0, 1),
  6: lambda x: x.swapaxes(0, 1)[:, ::-1],
  7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
  8: lambda x: x.swapaxes(0, 1)[::-1],
}


@pytest.mark.parametrize('orientation', UPRIGHT)
@pytest.mark.parametrize('options', [{'format': 'PNG'}, {'format': 'WEBP', 'lossless': True}, {'format': 'TIFF'}])
def test_the_orientation_in_exif_is_applied_when_asked_for(make_image, orientation, options):
  pixels = make_image(9, 7)
  buffer = io.BytesIO()
  Image.fromarray(pixels).save(buffer, exif=exif_of(orientation), **options)
  found = decoded(buffer.getvalue(), 'x', how=images.Decoding(rotate=True))
  np.testing.assert_array_equal(found, UPRIGHT[orientation](pixels))


def exif_with(tag, kind, value):
  """EXIF data of the orientation 6 and another tag; `value` are its 4 bytes."""
  tags = sorted([(0x0112, 3, struct.pack('<HH', 6, 0)), (tag, kind, value)])
  entries = b''.join(struct.pack('<HHI', tag, kind, 1) + value for tag, kind, value in tags)
  return b'Exif\0\0II*\0' + struct.pack('<IH', 8, 2) + entries + bytes(4)


@pytest.mark.parametrize(
  'exif',
  [
    exif_with(0x0100, 9, struct.pack('<i', -1)),  # a negative width
    exif_with(0x0102, 11, struct.pack('<f', 8)),  # bits as a floating-point number
    exif_with(0x0115, 4, struct.pack('<I', 70_000)),
    exif_with(0x011A, 2, b'72\0\0'),  # a resolution as text
  ],
)
@pytest.mark.parametrize('options', [{'format': 'PNG'}, {'format': 'WEBP', 'lossless': True}])
def test_malformed_tags_beside_the_orientation_do_not_matter(make_image, exif, options):
  pixels, buffer = make_image(9, 7), io.BytesIO()
  Image.fromarray(pixels).save(buffer, exif=exif, **options)
  np.testing.assert_array_equal(decoded(buffer.getvalue(), 'x', how=images.Decoding(rotate=True)), UPRIGHT[6](pixels))


def test_exif_data_that_are_none_turn_nothing(make_image):
  pixels, buffer = make_image(9, 7), io.BytesIO()
  Image.fromarray(pixels).save(buffer, 'PNG', exif=b'Exif\0\0XXXX*\0\0\0')
  np.testing.assert_array_equal(decoded(buffer.getvalue(), 'x', how=images.Decoding(rotate=True)), pixels)


@pytest.mark.parametrize('shape', [(5, 4), (5, 4, 3)])
@pytest.mark.parametrize('bits', [12, 16])
def test_16_bit_images_are_turned_too(deep_png, shape, bits):
  values = np.random.default_rng(0).integers(0, 2**12, shape)
  encoded = deep_png(values, exif=exif_of(6).tobytes().removeprefix(b'Exif\0\0'))
  found = decoded(encoded, 'x', how=images.Decoding(bits, rotate=True))
  np.testing.assert_array_equal(found, np.broadcast_to(UPRIGHT[6](np.atleast_3d(values)) >> (bits - 8), (4, 5, 3)))


FORMATS = ('JPEG', 'PNG', 'GIF', 'BMP', 'TIFF', 'WEBP', 'PPM', 'TGA', 'PCX', 'JPEG2000', 'QOI')


@pytest.mark.filterwarnings('ignore')  # of Pillow, about what it passes over
@pytest.mark.parametrize('format', FORMATS)
def test_whatever_is_damaged_the_file_is_named(make_image, monkeypatch, format):
  monkeypatch.setattr(images, 'LARGEST', 2**24)  # decoding as many as a damaged header may name takes seconds
  encoded, generator = encode(Image.fromarray(make_image(20, 20)), format), np.random.default_rng(0)
  for _ in range(100):
    damaged = np.frombuffer(encoded, np.uint8).copy()
    damaged[generator.integers(0, min(200, len(damaged)), 3)] = generator.integers(0, 256, 3)
    damaged = damaged[: generator.integers(1, len(damaged) + 1)] if generator.random() < 0.5 else damaged
    for how in (images.USUAL, images.Decoding(12, True)):
      try:
        images.decode(damaged.tobytes(), 'cat.jpg', how=how)
      except errors.InputError as error:
        assert ' cat.jpg ' in str(error)


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('interpolation', ['bilinear', 'bicubic'])
def test_squash_is_pillows_resize(make_image, channels, interpolation):
  image = images.from_array(make_image(13, 29, channels))
  expected = np.asarray(image.resize((8, 10), Image.Resampling[interpolation.upper()])).reshape(10, 8, channels)

  found = images.squash(image, None, size=(10, 8), interpolation=interpolation)
  np.testing.assert_array_equal(images.to_array(found), expected)


@pytest.mark.parametrize(('channels', 'mode'), [(1, 'L'), (3, 'RGB')])
def test_an_array_and_back(make_image, channels, mode):
  original = make_image(5, 7, channels)
  image = images.from_array(original)

  assert (image.mode, image.size) == (mode, (7, 5))
  np.testing.assert_array_equal(images.to_array(image), original)
  for row, column in ((0, 0), (4, 6), (2, 5)):
    assert np.atleast_1d(image.getpixel((column, row))).tolist() == original[row, column].tolist()


def draw(height, width, count=400, min_area=0.08):
  return np.array(
    [images.crop_box(height, width, order.generator(0, order.CROP, 0, position), min_area) for position in range(count)]
  )


def test_random_crops_lie_inside_and_have_area_and_ratio_in_range():
  height, width = 60, 90
  top, left, h, w = draw(height, width).T

  assert (top >= 0).all()
  assert (left >= 0).all()
  assert (top + h <= height).all()
  assert (left + w <= width).all()
  # Rounding to whole pixels moves both a little.
  assert 0.07 < (h * w / (height * width)).min() < 0.1
  assert (h * w / (height * width)).max() > 0.8
  assert (w / h).min() > 0.75 * 0.93
  assert (w / h).max() < 4 / 3 * 1.07


def test_random_crops_are_uniform_in_area_and_log_ratio():
  """On an image so large that each first box fits nearly always: means of area, log ratio and place."""
  top, left, h, w = draw(2000, 2000, count=2000, min_area=0.05).T
  small = h * w < 2000**2 * 0.5  # boxes that cannot fail to fit
  ratio = np.log(w / h)[small]

  assert abs((h * w)[small].mean() / 2000**2 - 0.275) < 0.01
  assert abs(ratio.mean()) < 0.02
  assert abs(ratio.std() - 2 * np.log(4 / 3) / np.sqrt(12)) < 0.01
  assert abs((top[small] / (2000 - h[small])).mean() - 0.5) < 0.03
  assert abs((left[small] / (2000 - w[small])).mean() - 0.5) < 0.03


@pytest.mark.parametrize(
  ('height', 'width', 'box'), [(10, 1000, (0, 493, 10, 13)), (1000, 10, (493, 0, 13, 10)), (10, 1000, (0, 493, 10, 13))]
)
def test_an_image_too_narrow_for_any_box_gives_its_center(height, width, box):
  """torchvision's fallback: the largest centered box with ratio 3/4 or 4/3; areas near 1 fit no box here."""
  assert images.crop_box(height, width, order.generator(0, order.CROP), min_area=0.9) == box


def test_an_image_with_a_fitting_ratio_falls_back_to_the_whole():
  class Never:
    """Draws an area that is too large, always."""

    def uniform(self, low, high):
      return 2.0 if low > 0 else 0.0

  assert images.crop_box(30, 30, Never(), 0.5) == (0, 0, 30, 30)


def test_random_resized_crop_resizes_its_box(make_image):
  image, size = Image.fromarray(make_image(40, 50)), (16, 16)
  top, left, h, w = images.crop_box(40, 50, order.generator(0, order.CROP, 1, 2), 0.2)
  expected = image.crop((left, top, left + w, top + h)).resize(size, Image.Resampling.BILINEAR)

  found = images.random_resized_crop(image, order.generator(0, order.CROP, 1, 2), size, 0.2)
  np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(('height', 'width'), [(40, 60), (60, 40), (33, 33), (8, 100)])
def test_center_crop_is_that_of_torchvision(make_image, height, width):
  """Resize(32): the shorter side to 32, the longer to int(32 * long / short); CenterCrop(28)."""
  image = Image.fromarray(make_image(height, width))
  short, long = min(height, width), max(height, width)
  resized = {short: 32, long: int(32 * long / short)}
  h, w = (32, 32) if height == width else (resized[height], resized[width])
  top, left = int(round((h - 28) / 2.0)), int(round((w - 28) / 2.0))
  shrunk = image.resize((w, h), Image.Resampling.BILINEAR)
  expected = np.asarray(shrunk.crop((left, top, left + 28, top + 28)))

  np.testing.assert_array_equal(images.resize_center_crop(image, None, (28, 28), fraction=0.875), expected)


@pytest.mark.parametrize('interpolation', ['bilinear', 'bicubic'])
@pytest.mark.parametrize(
  ('height', 'width', 'resized'),
  [(3, 301, (3210, 32)), (301, 3, (32, 3210)), (1, 700, (22_400, 32)), (90, 3, (32, 960))],
)
def test_the_center_of_a_thin_image_is_that_of_the_whole(
  make_image, monkeypatch, height, width, resized, interpolation
):
  image, used, resize = Image.fromarray(make_image(height, width)), [], Image.Image.resize
  left, top = ((side - 28) // 2 for side in resized)
  whole = image.resize(resized, Image.Resampling[interpolation.upper()])
  expected = np.asarray(whole.crop((left, top, left + 28, top + 28)), np.int32)

  monkeypatch.setattr(Image.Image, 'resize', lambda self, size, *args: used.append(size) or resize(self, size, *args))
  found = images.resize_center_crop(image, None, (28, 28), 0.875, interpolation)
  assert used == [(28, 28)], 'a PNG of 254 bytes, 60,000 pixels wide, would take 12 GB'
  np.testing.assert_allclose(np.asarray(found), expected, atol=1)  # Pillow holds the box in float32


def test_the_center_of_the_longest_image():
  pixels = np.zeros((1, 2**25), np.uint8)
  pixels[0, 2**24 - 1 :] = 200  # from the left one of both central pixels on
  pixels[0, 2**24 :] = 100
  found = np.asarray(images.resize_center_crop(Image.fromarray(pixels), None, (28, 28), 0.875))
  x = (np.arange(28) + 0.5 - 14) / 32  # in pixels, from the center of the image
  np.testing.assert_allclose(found, np.broadcast_to(150 - 100 * np.clip(x, -0.5, 0.5), (28, 28)), atol=1)


@pytest.mark.parametrize(('size', 'fraction', 'resized'), [(28, 0.85, 32), (224, 0.9, 248), (224, 0.95, 235)])
def test_the_size_before_the_center_crop_is_that_of_timm(make_image, size, fraction, resized):
  """`math.floor(img_size / crop_pct)` in its transforms_factory, also where the quotient is nearer to the next one."""
  image = Image.fromarray(make_image(300, 300))
  margin = round((resized - size) / 2)
  large = image.resize((resized, resized), Image.Resampling.BILINEAR)
  expected = np.asarray(large.crop((margin, margin, margin + size, margin + size)))

  np.testing.assert_array_equal(images.resize_center_crop(image, None, (size, size), fraction), expected)


def test_center_crop_of_everything_is_a_resize(make_image):
  image = Image.fromarray(make_image(50, 50))

  np.testing.assert_array_equal(
    images.resize_center_crop(image, None, (20, 20), fraction=1.0), images.squash(image, None, (20, 20))
  )
