"""Videos in, frame by frame, and out, with boxes."""

import json

import numpy as np
import pytest
from blob_detector import blob_checkpoint, blob_config, scene

from ddetr_plugin.apis.video import VideoWriter, read_frames, video_info
from ddetr_plugin.cli import run_command
from ddetr_plugin.datasets import UnreadableImageError


@pytest.fixture
def clip(tmp_path):
    """Twelve frames of a red blob that moves to the right, 16 pixels each."""
    path = tmp_path / 'clips' / 'clip.mp4'
    path.parent.mkdir()
    writer = VideoWriter(path, 10)
    for number in range(12):
        writer.write(scene(160, 256, (16 * number, 48, 48, 64, 1)))
    writer.close()
    return path


def test_a_video_is_an_image_for_each_frame_in_order(blob_detector, clip):
    detector = blob_detector()
    found = list(detector(clip, batch_size=5, num_workers=2))
    assert [f.frame for f in found] == list(range(12)) == [f.index for f in found]
    assert all(f.size == (160, 256) and f.source == str(clip) for f in found)
    assert all(f.names == ['red'] for f in found)
    lefts = [f.boxes[0, 0] for f in found]
    assert lefts == pytest.approx([16 * number for number in range(12)], abs=3)
    assert found[3].title == f'{clip}, frame 3'
    with pytest.raises(ValueError, match='frame 3 was not kept'):
        found[3].draw()


def test_a_video_among_images_and_one_that_is_broken(blob_detector, clip, tmp_path):
    (tmp_path / 'broken.mp4').write_bytes(b'no video')
    image = scene(160, 256, (16, 48, 48, 64, 0))
    found = list(blob_detector()([image, tmp_path / 'broken.mp4', clip, image]))
    assert [f.index for f in found] == list(range(15))
    assert found[1].error.startswith('not a readable image') and 'ffmpeg' in found[1].error
    assert found[2].frame == 0 and found[-1].frame is None and found[-1].names == ['green']


def test_what_a_video_says_of_itself(clip, tmp_path):
    info = video_info(clip)
    assert info.size == (160, 256) and info.fps == pytest.approx(10) and info.frames == 12
    frames = read_frames(clip)
    assert next(frames).shape == (160, 256, 3)
    frames.close()
    (tmp_path / 'text.mp4').write_text('text')
    with pytest.raises(UnreadableImageError, match='is no video that OpenCV can read'):
        next(read_frames(tmp_path / 'text.mp4'))


def test_predict_draws_a_video_and_writes_one_json(clip, tmp_path, capsys):
    blob_config().dump(tmp_path / 'config.py')
    checkpoint = blob_checkpoint(tmp_path / 'weights.pth')
    out = tmp_path / 'out'
    arguments = [clip, tmp_path / 'config.py', checkpoint, '--out', out, '--batch-size', 4]
    run_command('predict', [*map(str, arguments), '--format', 'coco', 'yolo', 'csv'])
    assert f'{clip}: 12 objects on 12 frames' in capsys.readouterr().out
    content = json.loads((out / 'predictions.json').read_text())
    assert content['videos'] == [dict(id=1, name='clip.mp4')]
    assert [image['frame_id'] for image in content['images']] == list(range(12))
    assert content['images'][11]['file_name'] == 'clip.mp4/000011'
    assert len(content['annotations']) == 12
    assert len((out / 'predictions.csv').read_text().splitlines()) == 13
    assert len(list((out / 'labels').glob('clip.mp4/*.txt'))) == 12
    drawn = list(read_frames(out / 'clip.mp4'))
    assert len(drawn) == 12 and drawn[0].shape == (160, 256, 3)
    assert video_info(out / 'clip.mp4').fps == pytest.approx(10)
    original = list(read_frames(clip))
    differences = [np.abs(a.astype(int) - b).max() for a, b in zip(drawn, original)]
    assert min(differences) > 60, 'every frame has a box on it'


def test_a_frame_of_another_size_is_not_lost(tmp_path):
    writer = VideoWriter(tmp_path / 'out.mp4', 5)
    for height in (64, 80, 64):
        writer.write(scene(height, 96))
    writer.close()
    assert [frame.shape for frame in read_frames(tmp_path / 'out.mp4')] == [(64, 96, 3)] * 3


def test_a_video_that_cannot_be_written_is_an_error(tmp_path):
    writer = VideoWriter(tmp_path / 'gone' / 'out.mp4', 5)
    with pytest.raises(OSError, match=r'out\.mp4 cannot be written'):
        writer.write(scene(64, 96))
