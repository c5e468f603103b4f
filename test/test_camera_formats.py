"""Camera messages to RGB: the same pixels as OpenCV gives, whatever the rows' padding and byte order; and
what cannot be true is told.
"""

import functools
import io
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ros2_nanochat.robot import camera_formats
from ros2_nanochat.robot.camera_formats import ENCODINGS, compressed_to_rgb, image_to_rgb

cv2 = pytest.importorskip('cv2', reason='the oracle of these tests is OpenCV')
Image = pytest.importorskip('PIL.Image')
features = pytest.importorskip('PIL.features')
HEIGHT, WIDTH = 12, 16


def message(encoding, data, height=HEIGHT, width=WIDTH, step=None, big=0):
    return SimpleNamespace(
        height=height,
        width=width,
        encoding=encoding,
        step=len(data) // height if step is None else step,
        is_bigendian=big,
        data=data,
    )


def pixels(channels, dtype=np.uint8, seed=0):
    return np.random.default_rng(seed).integers(
        0, np.iinfo(dtype).max, (HEIGHT, WIDTH, channels), endpoint=True, dtype=dtype
    )


@pytest.mark.parametrize(
    'encoding, channels, code',
    [
        ('rgb8', 3, None),
        ('bgr8', 3, 'COLOR_BGR2RGB'),
        ('rgba8', 4, 'COLOR_RGBA2RGB'),
        ('bgra8', 4, 'COLOR_BGRA2RGB'),
        ('mono8', 1, 'COLOR_GRAY2RGB'),
        ('yuv422', 2, 'COLOR_YUV2RGB_UYVY'),
        ('yuv422_yuy2', 2, 'COLOR_YUV2RGB_YUY2'),
        ('bayer_rggb8', 1, 'COLOR_BayerBG2RGB'),
        ('bayer_bggr8', 1, 'COLOR_BayerRG2RGB'),
        ('bayer_gbrg8', 1, 'COLOR_BayerGR2RGB'),
        ('bayer_grbg8', 1, 'COLOR_BayerGB2RGB'),
    ],
)
@pytest.mark.parametrize('padding', [0, 5])
def test_8_bit_encodings_give_the_pixels_of_opencv(encoding, channels, code, padding):
    source = pixels(channels)
    expected = (
        source
        if code is None
        else cv2.cvtColor(source if channels > 1 else source[..., 0], getattr(cv2, code))
    )
    rows = np.pad(source.reshape(HEIGHT, -1), ((0, 0), (0, padding)), constant_values=99)
    assert np.array_equal(image_to_rgb(message(encoding, rows.tobytes())), expected)


@pytest.mark.parametrize('encoding, channels', [('rgb8', 3), ('bgr8', 3), ('mono8', 1)])
def test_frames_whose_bytes_are_the_pixels_are_not_copied(encoding, channels):
    frame = message(encoding, pixels(channels).tobytes())
    assert np.shares_memory(image_to_rgb(frame), np.frombuffer(frame.data, np.uint8))


@pytest.mark.parametrize(
    'encoding, channels, code',
    [
        ('mono16', 1, 'COLOR_GRAY2RGB'),
        ('rgb16', 3, None),
        ('bgra16', 4, 'COLOR_BGRA2RGB'),
        ('bayer_rggb16', 1, 'COLOR_BayerBG2RGB'),
    ],
)
@pytest.mark.parametrize('big', [0, 1])
def test_16_bit_encodings_are_scaled_as_cv_bridge_does_in_either_byte_order(encoding, channels, code, big):
    source = pixels(channels, np.uint16)
    colors = (
        source
        if code is None
        else cv2.cvtColor(source if channels > 1 else source[..., 0], getattr(cv2, code))
    )
    expected = np.clip(np.rint(colors * (255 / 65535)), 0, 255).astype(np.uint8)  # convertTo with this factor
    data = source.astype('>u2' if big else '<u2').tobytes()
    assert np.array_equal(image_to_rgb(message(encoding, data, big=big)), expected)


def test_nv21_and_nv24_give_the_pixels_of_opencv():
    rng = np.random.default_rng(1)
    plane = rng.integers(0, 256, (HEIGHT * 3 // 2, WIDTH), dtype=np.uint8)
    assert np.array_equal(
        image_to_rgb(message('nv21', plane.tobytes(), step=WIDTH)),
        cv2.cvtColor(plane, cv2.COLOR_YUV2RGB_NV21),
    )
    # nv24 with colours that are the same in each block of four is nv12 with fewer of them
    y, small = plane[:HEIGHT], plane[HEIGHT:].reshape(HEIGHT // 2, WIDTH // 2, 2)
    large = np.repeat(np.repeat(small, 2, axis=0), 2, axis=1)
    got = image_to_rgb(message('nv24', y.tobytes() + large.tobytes(), step=WIDTH))
    assert np.array_equal(got, cv2.cvtColor(plane, cv2.COLOR_YUV2RGB_NV12))


@pytest.mark.parametrize('big', [0, 1])
def test_depth_goes_from_near_to_far_and_what_was_not_measured_is_black(big):
    depth = np.linspace(1.0, 5.0, HEIGHT * WIDTH, dtype=np.float32).reshape(HEIGHT, WIDTH)
    depth[0, 0], depth[0, 1], depth[0, 2] = np.nan, np.inf, 0.0
    grey = image_to_rgb(message('32FC1', depth.astype('>f4' if big else '<f4').tobytes(), big=big))
    assert grey[0, :3].max() == 0 and grey[0, 3, 0] == 1 and grey[-1, -1].tolist() == [255] * 3
    millimetres = (np.nan_to_num(depth, posinf=0) * 1000).astype('>u2' if big else '<u2')
    assert (
        np.abs(image_to_rgb(message('16UC1', millimetres.tobytes(), big=big)).astype(int) - grey).max() <= 1
    )


@pytest.mark.parametrize('kind', ['JPEG', 'PNG'])
def test_compressed_images_give_the_pixels_of_opencv(kind):
    smooth = cv2.resize(pixels(3), (64, 48), interpolation=cv2.INTER_CUBIC)
    buffer = io.BytesIO()
    Image.fromarray(smooth).save(buffer, kind)
    expected = cv2.cvtColor(
        cv2.imdecode(np.frombuffer(buffer.getvalue(), np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB
    )
    got = compressed_to_rgb(
        SimpleNamespace(format=f'rgb8; {kind.lower()} compressed bgr8', data=buffer.getvalue())
    )
    assert np.abs(got.astype(int) - expected).max() <= (
        2 if kind == 'JPEG' else 0
    )  # two builds of libjpeg may round differently


def test_depth_as_png_is_scaled_as_depth():
    depth = np.linspace(500, 4000, HEIGHT * WIDTH).astype(np.uint16).reshape(HEIGHT, WIDTH)
    ok, data = cv2.imencode('.png', depth)
    assert np.array_equal(
        compressed_to_rgb(SimpleNamespace(format='16UC1; png compressed', data=data.tobytes())),
        image_to_rgb(message('16UC1', depth.tobytes())),
    )


@pytest.mark.parametrize(
    'wrong, told',
    [
        (message('rgb8', b'0' * 10), 'step'),
        (message('rgb8', b'0' * 48 * 11, step=48), 'bytes'),
        (message('grb8', b''), 'grb8'),
        (message('rgb8', b'', height=0, step=0), 'no pixels'),
        (message('mono8', b'', height=100_000, width=100_000, step=100_000), 'too large'),
        (message('yuv422', b'0' * 30 * 12, width=15), 'even'),
        (message('nv21', b'0' * 16, step=16), 'bytes'),
        (message('nv24', b'0' * 16, step=16), 'bytes'),
    ],
)
def test_what_does_not_fit_itself_is_told_in_one_line(wrong, told):
    with pytest.raises(ValueError, match=told) as caught:
        image_to_rgb(wrong)
    assert '\n' not in str(caught.value)


HEADER = [  # sensor_msgs/image_encodings.hpp
    *('rgb8', 'rgba8', 'rgb16', 'rgba16', 'bgr8', 'bgra8', 'bgr16', 'bgra16', 'mono8', 'mono16'),
    *(f'{kind}C{n}' for kind in ('8U', '8S', '16U', '16S', '32S', '32F', '64F') for n in range(1, 5)),
    *(f'bayer_{pattern}{bits}' for pattern in ('rggb', 'bggr', 'gbrg', 'grbg') for bits in (8, 16)),
    *('uyvy', 'yuv422', 'yuyv', 'yuv422_yuy2', 'nv12', 'nv21', 'nv24'),
]


@pytest.mark.parametrize('encoding', HEADER)
def test_every_encoding_of_ros_is_decoded_or_named_as_unsupported(encoding):
    data = np.random.default_rng(2).random((HEIGHT, WIDTH, 4)).astype('<f8').tobytes()
    step = {'n': WIDTH, 'm': WIDTH * 2}.get(encoding[0], len(data) // HEIGHT)
    if '64F' not in encoding:
        data = np.random.default_rng(2).random(len(data) // 4).astype('<f4').tobytes()
        step = min(step, len(data) // HEIGHT)
    try:
        assert image_to_rgb(message(encoding, data, step=step)).shape == (HEIGHT, WIDTH, 3)
        assert encoding in ENCODINGS
    except ValueError as error:
        assert f"unsupported image encoding '{encoding}'" in str(error) and encoding not in ENCODINGS


@pytest.mark.parametrize('big', [0, 1])
def test_matrices_of_opencv_are_bgr(big):
    colors = pixels(3, np.uint16)
    data = colors.astype('>u2' if big else '<u2').tobytes()
    expected = np.rint(colors[..., ::-1] / 257)
    assert np.array_equal(image_to_rgb(message('16UC3', data, big=big)), expected)
    for top in (1.0, 255.0):
        floats = (colors / 65535 * top).astype('>f4' if big else '<f4')
        floats[0, 0] = top
        got = image_to_rgb(message('32FC3', floats.tobytes(), big=big))
        assert np.abs(got[1:] - expected[1:]).max() <= 1
    with pytest.raises(ValueError, match='values from'):
        image_to_rgb(message('32FC3', (colors * 1.0).astype('<f4').tobytes()))


def test_encodings_are_known_in_upper_case_too():
    source = pixels(3)
    assert np.array_equal(image_to_rgb(message('BGR8', source.tobytes())), source[..., ::-1])


def test_nv12_gives_the_pixels_of_opencv():
    plane = np.random.default_rng(1).integers(0, 256, (HEIGHT * 3 // 2, WIDTH), dtype=np.uint8)
    assert np.array_equal(
        image_to_rgb(message('nv12', plane.tobytes(), step=WIDTH)),
        cv2.cvtColor(plane, cv2.COLOR_YUV2RGB_NV12),
    )


@pytest.mark.parametrize('bits', [8, 16])
@pytest.mark.parametrize('pattern', ['rggb', 'bggr', 'gbrg', 'grbg'])
def test_the_prefix_of_a_compressed_format_is_the_encoding(pattern, bits):
    mosaic = pixels(1, np.uint8 if bits == 8 else np.uint16)[..., 0]
    ok, data = cv2.imencode('.png', mosaic)
    encoding = f'bayer_{pattern}{bits}'
    for target in ('', ' ', f' {encoding}'):
        sent = SimpleNamespace(format=f'{encoding}; png compressed{target}', data=data.tobytes())
        assert np.array_equal(compressed_to_rgb(sent), image_to_rgb(message(encoding, mosaic.tobytes())))
    grey = compressed_to_rgb(SimpleNamespace(format=f'{encoding}; png compressed mono8', data=data.tobytes()))
    assert (grey == grey[..., :1]).all()


@pytest.mark.parametrize(
    'form',
    [
        'BAYER_RGGB8; PNG compressed BAYER_RGGB8',
        'bayer_rggb8; png compressed bgr8',  # a mosaic all the same, since it is grey
        ' bayer_rggb8 ;png',
        'bayer_rggb8, png compressed',
        'bayer_rggb8 png',
        'png; bayer_rggb8',
        'bayer_rggb8',
    ],
)
@pytest.mark.parametrize('kind, mode', [('PNG', 'L'), ('PNG', 'LA'), ('PNG', 'RGB'), ('WEBP', 'L')])
def test_a_mosaic_is_found_however_its_format_is_written_and_its_file_keeps_grey(form, kind, mode):
    mosaic = pixels(1)[..., 0]
    buffer = io.BytesIO()
    Image.fromarray(mosaic).convert(mode).save(buffer, kind, lossless=True)
    got = compressed_to_rgb(SimpleNamespace(format=form, data=buffer.getvalue()))
    if 'bgr8' in form and (kind, mode) not in (('PNG', 'L'), ('PNG', 'LA')):
        assert (got == mosaic[..., None]).all()  # three channels are what the format promises
    else:
        assert np.array_equal(got, image_to_rgb(message('bayer_rggb8', mosaic.tobytes())))


def test_colors_whose_sender_had_a_mosaic_stay_as_they_are():
    buffer = io.BytesIO()
    Image.fromarray(pixels(3)).save(buffer, 'PNG')
    for form in ('bayer_rggb8; png compressed bgr8', 'bayer_rggb8; png compressed ', 'bayer_rggb12; png'):
        got = compressed_to_rgb(SimpleNamespace(format=form, data=buffer.getvalue()))
        assert np.array_equal(got, pixels(3))
    grey = cv2.imencode('.png', pixels(1))[1].tobytes()
    with pytest.raises(ValueError, match="'bayer_rggb12; png'.*unknown Bayer encoding"):
        compressed_to_rgb(SimpleNamespace(format='bayer_rggb12; png', data=grey))


@pytest.mark.parametrize('encoding', ['rgba8', 'bgra8', '8UC4'])
def test_alpha_of_a_camera_means_nothing(encoding):
    colors = pixels(4)  # with any alpha
    buffer = io.BytesIO()
    Image.fromarray(colors).save(buffer, 'PNG')
    got = compressed_to_rgb(SimpleNamespace(format=f'{encoding}; png compressed', data=buffer.getvalue()))
    assert np.array_equal(got, colors[..., :3])
    drawn = compressed_to_rgb(SimpleNamespace(format='png', data=buffer.getvalue()))
    assert not np.array_equal(drawn, colors[..., :3])  # of a drawing, transparent parts are white


@pytest.mark.parametrize('options', [{}, {'progressive': True}], ids=['baseline', 'progressive'])
@pytest.mark.parametrize('lost', [1, 2, 40, 0.3])
def test_a_jpeg_that_is_cut_off_at_its_end_still_shows(lost, options):
    smooth = cv2.resize(pixels(3), (320, 240), interpolation=cv2.INTER_CUBIC)
    buffer = io.BytesIO()
    Image.fromarray(smooth).save(buffer, 'JPEG', quality=95, **options)
    data = buffer.getvalue()
    cut = data[: -(lost if lost >= 1 else int(lost * len(data)))]
    got = compressed_to_rgb(SimpleNamespace(format='jpeg', data=cut)).astype(int)
    assert got.shape == smooth.shape and np.abs(got[:100] - smooth[:100]).mean() < 10


@pytest.mark.parametrize(
    ('form', 'start', 'says'),
    [
        ('16UC1; compressedDepth png', bytes(12) + b'\x89PNG', 'compressedDepth'),
        ('16UC1; COMPRESSEDDEPTH rvl', bytes(40), 'send the depth as an Image'),
        ('heic', b'\0\0\0\x18ftypheic', 'HEIC'),
        ('h264', b'\0\0\0\1g', 'H.264'),
        ('h264', b'\0\0\1g', 'H.264'),
        ('', b'\0\0\1\0\1\0', 'an icon'),
        ('mp4', b'\0\0\0\x18ftypisom', 'video'),
        ('', b'', 'empty'),
        ('jpeg', b'\xff\xd8\xff', 'beginning is broken'),
        ('avif', b'\0\0\0\x18ftypavif', 'beginning is broken' if features.check('avif') else 'it is AVIF'),
    ],
)
def test_what_is_not_supported_is_named(form, start, says):
    with pytest.raises(ValueError, match=says) as caught:
        compressed_to_rgb(SimpleNamespace(format=form, data=start))
    assert '\n' not in str(caught.value) and len(str(caught.value)) < 500


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from([*ENCODINGS, 'rgb', '']),
    st.integers(0, 40),
    st.integers(0, 40),
    st.integers(0, 300),
    st.binary(max_size=2000),
    st.integers(0, 1),
)
def test_any_message_is_an_image_or_a_value_error(encoding, height, width, step, data, big):
    try:
        assert image_to_rgb(message(encoding, data, height, width, step, big)).shape == (height, width, 3)
    except ValueError as error:
        assert str(error) and '\n' not in str(error)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=300), st.integers(0, 2000), st.integers(0, 255))
def test_broken_files_are_value_errors(junk, at, byte):
    buffer = io.BytesIO()
    Image.fromarray(pixels(3)).save(buffer, 'PNG')
    broken = bytearray(buffer.getvalue())
    broken[at % len(broken)] = byte
    for data in (junk, bytes(broken), buffer.getvalue()[:at]):
        try:
            assert compressed_to_rgb(SimpleNamespace(format='png', data=data)).shape[2] == 3
        except ValueError as error:
            assert str(error)


def test_conversions_need_neither_ros_nor_opencv_to_be_imported():
    code = (
        'import sys, ros2_nanochat.robot.camera_formats; assert not {"rclpy", "cv2", "PIL"} & '
        'set(sys.modules), sys.modules'
    )
    subprocess.run([sys.executable, '-c', code], check=True)


@pytest.mark.parametrize('error', [ImportError, AttributeError, RuntimeError])
def test_a_cv_bridge_that_cannot_be_imported_is_tried_once_and_costs_no_frame(monkeypatch, error):
    tried = []

    class Broken:
        def find_spec(self, name, *_):
            if name == 'cv_bridge':
                tried.append(name)
                raise error('built for another NumPy')

    monkeypatch.delitem(sys.modules, 'cv_bridge', raising=False)
    monkeypatch.setattr(sys, 'meta_path', [Broken(), *sys.meta_path])
    monkeypatch.setattr(camera_formats, '_cv_bridge', functools.cache(camera_formats._cv_bridge.__wrapped__))
    source = pixels(3)
    for _ in range(3):
        assert (image_to_rgb(message('rgb8', source.tobytes())) == source).all()
    assert len(tried) == 1
