"""Opening images: whatever comes in, an upright RGB picture or one ValueError line."""

import base64
import http.server
import io
import os
import tempfile
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from ros2_nanochat.chat import storage
from ros2_nanochat.chat.message import ChatMessage, is_image
from ros2_nanochat.image_sources import EXTENSIONS, is_image_name
from ros2_nanochat.vision import fetch as fetch_module
from ros2_nanochat.vision.images import MAX_BYTES, image_digest, open_image
from ros2_nanochat.vision.pixels import MAX_PIXELS, num_pixels

RGB = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def encoded(picture=None, form='PNG', **options) -> bytes:
    data = io.BytesIO()
    (picture or Image.fromarray(RGB)).save(data, form, **options)
    return data.getvalue()


def opened(source, **options) -> np.ndarray:
    picture = open_image(source, **options)
    assert picture.mode == 'RGB'
    return np.asarray(picture)


def refused(source, **options) -> str:
    with pytest.raises(ValueError) as caught:
        open_image(source, **options)
    message = str(caught.value)
    assert message and '\n' not in message and len(message) < 500
    return message


@pytest.mark.parametrize(
    'source',
    [
        RGB,
        RGB[None],
        RGB.transpose(2, 0, 1),
        RGB / 255,
        RGB.astype(np.float32),
        RGB.astype(np.int64),
        RGB.astype(np.uint16) * 257,
        Image.fromarray(RGB),
        encoded(),
        bytearray(encoded()),
        memoryview(encoded()),
        encoded(form='BMP'),
        encoded(form='TIFF'),
        encoded(form='PPM'),
        'data:image/png;base64,' + base64.b64encode(encoded()).decode(),
        np.dstack([RGB, np.full((20, 30), 255, np.uint8)]),
    ],
)
def test_the_same_picture_comes_out_of_every_form(source):
    assert np.array_equal(opened(source), RGB)


@pytest.mark.parametrize('line', [64, 76, 1])
@pytest.mark.parametrize('end', ['\n', '\r\n', '\n  '])
def test_base64_may_have_line_breaks(line, end):
    text = base64.b64encode(encoded(Image.fromarray(RGB[:8, :8]))).decode()
    url = 'data:image/png;base64,' + end.join(text[at : at + line] for at in range(0, len(text), line))
    assert is_image_name(url) and np.array_equal(opened(url), RGB[:8, :8])


def test_base64_may_be_that_of_addresses_and_lack_its_padding():
    for width in (30, 31, 32):
        data = encoded(Image.fromarray(RGB[:, : width - 4]))
        for text in (base64.b64encode(data), base64.urlsafe_b64encode(data)):
            picture = open_image('data:image/png;base64,' + text.decode().rstrip('='))
            assert picture.size == (min(30, width - 4), 20)


def test_open_files_are_read_and_stay_open(tmp_path):
    path = tmp_path / 'x.png'
    path.write_bytes(encoded())
    with open(path, 'rb') as file:
        assert np.array_equal(opened(file), RGB)
        file.seek(0)
        assert file.read(4) == b'\x89PNG'
    assert 'closed' in refused(file)
    assert np.array_equal(opened(io.BytesIO(encoded())), RGB)
    with tempfile.SpooledTemporaryFile() as spooled:
        spooled.write(encoded())
        spooled.seek(0)
        assert np.array_equal(opened(spooled), RGB)
    with open(__file__) as file:
        assert "'rb'" in refused(file)


def test_an_open_file_is_read_from_its_beginning_wherever_it_stands():
    written = io.BytesIO()
    Image.new('RGB', (4, 2), 'red').save(written, 'PNG')
    for place in (len(written.getvalue()), 5, 0):
        written.seek(place)
        assert open_image(written).size == (4, 2) and not written.closed
    reading, writing = os.pipe()
    os.write(writing, written.getvalue())
    os.close(writing)
    with open(reading, 'rb') as pipe:
        assert open_image(pipe).size == (4, 2)


@pytest.mark.parametrize('batch', [(None,), (None, None)])
def test_a_batch_of_one_is_an_image(batch):
    assert is_image(RGB[batch]) and np.array_equal(opened(RGB[batch]), RGB)
    assert not is_image(np.zeros((2, 8, 8, 3)))


@pytest.mark.parametrize('form', ['JPEG', 'TGA', 'AVIF', 'GIF'])
@pytest.mark.parametrize('ending', EXTENSIONS)
def test_every_extension_names_an_image_which_opens_or_is_refused_in_one_line(form, ending, tmp_path):
    path = tmp_path / f'x{ending}'
    try:
        Image.fromarray(RGB).save(path, form)
    except (KeyError, OSError):
        pytest.skip(f'this Pillow has no {form}')
    assert is_image_name(str(path)) and is_image_name(f'https://x.org/cat{ending.upper()}')
    if form != 'TGA' or ending == '.tga':
        assert opened(str(path)).shape == RGB.shape
    else:
        assert 'not an image' in refused(str(path))


@pytest.mark.parametrize(
    'long',
    [
        'data:image/png;base64,' + 'A' * 75_000,
        'data:image/png;base64,' + '@' * 75_000,
        'data:image/png,' + '%41' * 30_000,
        'x' * 75_000 + '.png',
        'ftp://x/' + 'y' * 75_000 + '.png',
    ],
)
def test_long_texts_are_cut_in_errors(long):
    assert len(refused(long)) < 500
    with pytest.raises(ValueError) as caught:
        ChatMessage('user', image=long + ' ')
    assert len(str(caught.value)) < 500


def test_tensors_are_taken_in_either_order():
    torch = pytest.importorskip('torch')
    for tensor in (
        torch.from_numpy(RGB),
        torch.from_numpy(RGB).permute(2, 0, 1)[None],
        torch.from_numpy(RGB).float() / 255,
    ):
        assert np.array_equal(opened(tensor), RGB)
    assert abs(opened((torch.from_numpy(RGB).float() / 255).to(torch.bfloat16)).astype(int) - RGB).max() <= 1


def test_paths_and_file_urls_are_opened(tmp_path):
    path = tmp_path / 'a picture.png'
    path.write_bytes(encoded())
    for source in (path, str(path), path.as_uri()):
        assert np.array_equal(opened(source), RGB)
    assert open_image(str(path)).filename == str(path)


@pytest.mark.parametrize('orientation', range(1, 9))
def test_exif_orientation_turns_the_picture_as_pillow_does(orientation):
    exif = Image.Exif()
    exif[0x112] = orientation
    data = encoded(exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    assert np.array_equal(opened(data), expected)
    assert np.array_equal(opened(open_image(data)), expected)  # once


@pytest.mark.parametrize(
    'mode', ['1', 'L', 'P', 'LA', 'PA', 'RGBA', 'RGBX', 'CMYK', 'YCbCr', 'LAB', 'HSV', 'I', 'F', 'I;16']
)
def test_every_mode_of_pillow_becomes_rgb(mode):
    grey = Image.fromarray(RGB[..., 0])
    picture = (
        Image.fromarray(RGB[..., 0].astype(np.uint16) * 257)
        if mode == 'I;16'
        else grey.convert('L').convert(mode)
        if mode in ('I', 'F', 'PA')
        else Image.fromarray(RGB).convert(mode)
    )
    assert opened(picture).shape == RGB.shape
    if mode in ('L', 'I', 'F', 'I;16', 'LA'):
        expected = np.asarray(Image.fromarray(RGB).convert('L') if mode in ('L', 'LA') else grey)
        assert np.array_equal(opened(picture)[..., 0], expected)


def test_transparent_parts_become_white():
    rgba = np.dstack([RGB, np.zeros((20, 30), np.uint8)])
    assert (opened(rgba) == 255).all()
    palette = Image.fromarray(RGB[..., 0] // 128).convert('P')
    assert (opened(encoded(palette, transparency=0))[RGB[..., 0] < 128] == 255).all()


def test_sixteen_bits_are_scaled_to_eight():
    deep = np.arange(600, dtype=np.uint16).reshape(20, 30) * 109
    assert np.array_equal(opened(encoded(Image.fromarray(deep)))[..., 0], np.rint(deep / 257))
    assert np.array_equal(opened(deep)[..., 0], np.rint(deep / 257))


def test_of_an_animation_the_first_frame_is_taken():
    frames = [Image.new('RGB', (8, 8), color) for color in ('red', 'blue')]
    data = encoded(frames[0], 'GIF', save_all=True, append_images=frames[1:])
    assert opened(data)[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize(
    ('source', 'says'),
    [
        (b'', 'empty'),
        (b'not an image', 'not an image'),
        (np.zeros((0, 5, 3), np.uint8), 'empty'),
        (np.zeros((5, 5, 7), np.uint8), 'shape'),
        (np.zeros(5, np.uint8), 'shape'),
        (np.full((4, 4), np.nan), 'nan'),
        (np.full((4, 4), -1), '-1'),
        (np.full((4, 4), 1e9), 'values'),
        (np.full((4, 4), 'x'), 'not an image'),
        (3, 'int'),
        (None, 'NoneType'),
        ('/no/such/file.png', 'no image file'),
        ('/tmp', 'director'),
        ('a\0b.png', 'null'),
        ('x' * 5000 + '.png', 'long'),
        ('data:image/png;base64,@', 'base64'),
        ('data:text/html,hello', 'data URL'),
        ('ftp://a/b.png', 'http://'),
        ('gopher://a/b.png', 'http://'),
        ('http://[::1', 'http://'),
        ('http:///x.png', 'http://'),
        (RGB[:1].repeat(100, 1), 'narrow'),
        ('', 'no image file'),
    ],
)
def test_what_is_no_image_is_refused_in_one_line(source, says):
    assert says in refused(source)


def test_a_device_or_pipe_is_refused_at_once(tmp_path):
    import os

    os.mkfifo(tmp_path / 'pipe.png')
    for path in ('/dev/zero', str(tmp_path / 'pipe.png')):
        assert 'not a file' in refused(path)


def test_a_decompression_bomb_is_refused_before_it_is_unpacked():
    bomb = encoded(Image.new('1', (20000, 20000)))
    assert len(bomb) < 100_000
    begin = time.monotonic()
    assert 'too large' in refused(bomb)
    assert time.monotonic() - begin < 5.0
    assert f'400,000,000 pixels, at most {MAX_PIXELS:,} in all; scale it down' in refused(bomb)
    assert 'too large' in refused(np.broadcast_to(np.uint8(0), (MAX_PIXELS // 1000 + 1, 1000)))


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    path = tmp_path / 'large.png'
    with open(path, 'wb') as file:
        file.truncate(MAX_BYTES + 1)
    assert 'too large' in refused(path)


FORMS = {form: encoded(form=form) for form in ('PNG', 'JPEG', 'GIF', 'WEBP', 'BMP', 'TIFF', 'PPM')}
FORMS['EXIF'] = encoded(form='JPEG', exif=(lambda e: (e.__setitem__(0x112, 6), e)[1])(Image.Exif()))


@given(
    form=st.sampled_from(sorted(FORMS)),
    end=st.floats(0, 1),
    flips=st.lists(st.tuples(st.floats(0, 0.999), st.integers(1, 255)), max_size=8),
)
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@example('PNG', 0.5, [])
@example('JPEG', 0.7, [])
def test_files_that_were_cut_and_flipped_open_or_are_refused_in_one_line(form, end, flips):
    data = bytearray(FORMS[form][: max(1, int(end * len(FORMS[form])))])
    for place, change in flips:
        data[int(place * len(data))] ^= change
    try:
        picture = open_image(bytes(data))
    except ValueError as error:
        assert str(error) and '\n' not in str(error)
    else:
        assert picture.mode == 'RGB' and min(picture.size) > 0


@given(st.binary(max_size=200))
@settings(max_examples=100, deadline=None)
def test_noise_is_refused_in_one_line(data):
    try:
        open_image(data)
    except ValueError as error:
        assert '\n' not in str(error)


def test_a_truncated_jpeg_is_refused():
    assert 'cannot be decoded' in refused(FORMS['JPEG'][:-200])


def test_the_digest_names_the_pixels():
    same = {image_digest(open_image(source)) for source in (RGB, encoded(), Image.fromarray(RGB))}
    assert len(same) == 1
    other = RGB.copy()
    other[0, 0, 0] ^= 1
    assert image_digest(open_image(other)) not in same
    assert image_digest(open_image(RGB.reshape(30, 20, 3))) not in same


def test_what_is_done_to_an_array_later_does_not_change_the_picture():
    frame = RGB.copy()
    picture = open_image(frame)
    frame[:] = 0
    assert np.array_equal(np.asarray(picture), RGB)
    assert open_image(picture) is picture


@pytest.mark.parametrize(
    ('text', 'image'),
    [
        ('cat.jpg', True),
        ('/data/a/CAT.JPEG', True),
        ('https://x.org/cat.png', True),
        ('https://x.org/cat.png?size=3#top', True),
        ('file:///a/b.webp', True),
        ('data:image/png;base64,AAAA', True),
        ('What is in cat.jpg', False),
        ('https://x.org/', False),
        ('hello', False),
        ('', False),
        ('a.png\nb.png', False),
        ('jpg', False),
        ('look at https://x.org/cat.png', False),
        ('http://[::1', False),
    ],
)
def test_names_of_images_are_told_from_text(text, image):
    assert is_image_name(text) is image


# --- over http ---


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = encoded()
        if self.path.startswith('/to?'):
            self.send_response(302)
            self.send_header('Location', self.path[4:])
            self.end_headers()
        elif self.path == '/missing.png':
            self.send_error(404)
        elif self.path == '/endless.png':
            self.send_response(200)
            self.end_headers()
            try:
                while True:
                    self.wfile.write(bytes(1 << 20))
            except OSError:
                pass
        elif self.path == '/slow.png':
            self.send_response(200)
            self.end_headers()
            try:
                for byte in body:
                    self.wfile.write(bytes([byte]))
                    time.sleep(0.1)
            except OSError:
                pass
        else:
            self.send_response(200)
            self.send_header(
                'Content-Length',
                str(
                    len(body)
                    + (100 if self.path == '/short.png' else MAX_BYTES if self.path == '/large.png' else 0)
                ),
            )
            self.end_headers()
            self.wfile.write(body if self.path != '/page.png' else b'<html>' + body[6:])

    def log_message(self, *args):
        pass


@pytest.fixture(scope='module')
def server():
    served = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    threading.Thread(target=served.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{served.server_port}'
    served.shutdown()
    served.server_close()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv('no_proxy', '*')


def test_an_image_is_fetched_over_http_and_redirects_are_followed(server):
    assert np.array_equal(opened(f'{server}/cat.png'), RGB)
    assert np.array_equal(opened(f'{server}/to?/cat.png'), RGB)


@pytest.mark.parametrize(
    ('path', 'says'),
    [
        ('/missing.png', '404'),
        ('/page.png', 'not an image'),
        ('/short.png', 'ended after'),
        ('/large.png', 'too large'),
        ('/endless.png', 'too large'),
        ('/to?file:///etc/passwd', 'file'),
        ('/to?ftp://127.0.0.1/a.png', 'ftp'),
        ('/to?data:image/png,AAAA', 'data'),
    ],
)
def test_what_cannot_be_fetched_is_refused_in_one_line(server, path, says):
    assert says in refused(server + path)


def test_a_slow_server_is_given_up(server, monkeypatch):
    monkeypatch.setattr(fetch_module, 'TIMEOUT', 0.5)
    begin = time.monotonic()
    with pytest.raises(ValueError, match='longer than 0.5 s'):
        fetch_module.fetch(f'{server}/slow.png', MAX_BYTES, timeout=0.5)
    assert time.monotonic() - begin < 10


def test_names_are_not_followed_where_that_is_not_wanted(server, tmp_path):
    (tmp_path / 'a.png').write_bytes(encoded())
    for name in (f'{server}/cat.png', str(tmp_path / 'a.png'), 'data:image/png;base64,AAAA'):
        assert 'not followed' in refused(name, urls=False)
    assert np.array_equal(opened(encoded(), urls=False), RGB)


@pytest.mark.parametrize(
    'image',
    [RGB, RGB[None], RGB.transpose(2, 0, 1), RGB / 255, RGB.astype(np.uint16) * 257, encoded(form='BMP')],
    ids=['array', 'batch', 'channels first', 'floats', '16 bits', 'bytes'],
)
def test_a_saved_conversation_holds_the_pixels_of_images_of_any_form(image, tmp_path):
    model = SimpleNamespace(info=SimpleNamespace(name='m'), open_image=open_image)
    path = tmp_path / 'talk.json'
    storage.save(path, [ChatMessage('user', image=image)], 'chat-ml', model)
    (message,) = storage.load(path, 'm')
    assert np.array_equal(opened(message.image), RGB)
    for written in (tmp_path / 'talk.json.images', *(tmp_path / 'talk.json.images').iterdir(), path):
        assert written.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize('role', ['x' * 75_000, ['y' * 75_000]])
def test_long_roles_and_texts_are_cut_in_errors(role):
    with pytest.raises(ValueError) as caught:
        ChatMessage(role, text='hello')
    assert len(str(caught.value)) < 400
    with pytest.raises(ValueError) as caught:
        ChatMessage('user', text=['z' * 75_000])
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize('form', ['PNG', 'JPEG', 'WEBP', 'BMP', 'GIF', 'TIFF'])
def test_the_header_tells_how_many_pixels_there_are(form):
    data = encoded(form=form)
    assert num_pixels(data) == 600
    if form not in ('WEBP', 'TIFF'):  # Pillow opens these only whole
        assert num_pixels(data[: len(data) * 3 // 4]) == 600  # nothing is decoded
    assert num_pixels(data[:3]) == num_pixels(b'') == num_pixels(b'nothing that can be opened') == 0
