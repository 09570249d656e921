"""Broken pictures are skipped in training and counted, and stop everything else."""

import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from forked import run_tool
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.runner import Runner
from PIL import Image

from ddetr_plugin.datasets import BrokenPictureError, LoadImageChecked
from ddetr_plugin.datasets.image_files import missing_end
from ddetr_plugin.registry import DATASETS


@pytest.fixture
def pictures(tiny_coco, tmp_path):
    """A copy of the pictures of `tiny_coco` that a test may spoil."""
    return shutil.copytree(tiny_coco.images, tmp_path / 'pictures')


def spoil(folder, *numbers):
    """Truncate one picture, empty the next, replace one by text, remove one; and so on."""
    paths = [folder / f'{number:02d}.png' for number in numbers]
    for i, path in enumerate(paths):
        content = path.read_bytes()
        path.unlink()
        if i % 4 < 3:
            path.write_bytes([content[:-100], b'', b'this is no picture at all'][i % 4])
    return paths


def loader(max_broken):
    load = dict(type='LoadImageFromFile')
    return dict(type='ddetr_plugin.LoadImageChecked', load=load, max_broken=max_broken)


def job(tiny_job, pictures, max_broken, **changes):
    config = Config.fromfile(tiny_job(train_cfg=dict(max_epochs=2), **changes))
    config.train_dataloader.dataset.data_prefix.img = str(pictures)
    config.train_dataloader.dataset.pipeline[0] = loader(max_broken)
    config.custom_hooks.append(dict(type='ddetr_plugin.BrokenPictureHook'))
    return config


def encoded(extension, picture=None):
    if picture is None:
        picture = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    return cv2.imencode(extension, picture)[1].tobytes()


@pytest.mark.parametrize('extension', ['.jpg', '.png'])
@pytest.mark.parametrize('lost', [1, 10, 500])
def test_a_file_without_its_end_is_found_where_the_decoder_says_nothing(tmp_path, extension, lost):
    path = tmp_path / f'picture{extension}'
    content = encoded(extension)
    path.write_bytes(content)
    assert missing_end(path) is None
    path.write_bytes(content[:-lost])
    assert 'truncated' in missing_end(path)


def test_bytes_after_the_end_and_a_thumbnail_before_it_mislead_nobody(tmp_path):
    path = tmp_path / 'picture.jpg'
    thumbnail, content = encoded('.jpg', np.zeros((8, 8, 3), np.uint8)), encoded('.jpg')
    # As EXIF stores it: within a segment, before the scan.
    segment = b'\xff\xe1' + (len(thumbnail) + 2).to_bytes(2, 'big') + thumbnail
    content = content[:2] + segment + content[2:]
    path.write_bytes(content + b'trailer of a camera')
    assert missing_end(path) is None
    assert Image.open(path).size == (60, 40)
    path.write_bytes(content[:-200])
    assert 'truncated' in missing_end(path)


def test_a_film_after_the_end_of_a_picture_is_no_missing_end(tmp_path):
    """Phones append seconds of film to a JPEG, among whose bytes any marker may be."""
    path = tmp_path / 'picture.jpg'
    content = encoded('.jpg', np.random.default_rng(1).integers(0, 255, (90, 90, 3), np.uint8))
    film = b'ftypmp42 \xff\xd9 \xff\xda \xff\xd8 and more'
    path.write_bytes(content + film)
    assert missing_end(path) is None
    path.write_bytes(content[:-300] + b'\xff')
    assert 'truncated' in missing_end(path)
    progressive = cv2.imencode(
        '.jpg', np.zeros((90, 90, 3), np.uint8), [cv2.IMWRITE_JPEG_PROGRESSIVE, 1]
    )[1].tobytes()
    path.write_bytes(progressive + film)
    assert missing_end(path) is None
    # Its first scan has ended, the last has not.
    path.write_bytes(progressive[: progressive.rfind(b'\xff\xda') + 12])
    assert 'truncated' in missing_end(path)


def test_pictures_that_a_backend_fetches_from_elsewhere_are_not_looked_for_on_the_disk():
    from mmengine.fileio import BaseStorageBackend, register_backend

    class Remote(BaseStorageBackend):
        def get(self, filepath):
            assert filepath == 'data/coco/1.png'
            return encoded('.png')

        def get_text(self, filepath):
            raise NotImplementedError

    register_backend('remote', Remote, force=True)
    load = dict(type='LoadImageFromFile', backend_args=dict(backend='remote'))
    results = LoadImageChecked(load)(dict(img_path='data/coco/1.png'))
    assert results['img'].shape == (40, 60, 3)


def test_a_training_skips_each_broken_picture_and_lists_all(tiny_job, pictures, tmp_path):
    broken = spoil(pictures, 2, 3, 5, 8)
    runner = Runner.from_cfg(job(tiny_job, pictures, max_broken=4))
    runner.train()
    listed = (tmp_path / 'work' / 'broken_pictures.txt').read_text()
    assert sorted(line.split(': ')[0].strip() for line in listed.splitlines()) == [
        str(path) for path in broken
    ]
    for reason in ('truncated', 'empty', 'FileNotFoundError'):
        assert reason in listed
    saved = torch.load(tmp_path / 'work' / 'epoch_2.pth')['message_hub']['runtime_info']
    assert len(saved['broken_pictures']) == 4


def test_names_of_files_need_not_be_text(tiny_job, pictures, tmp_path):
    config = job(tiny_job, pictures, max_broken=1)
    runner = Runner.from_cfg(config)
    runner.train_loop.dataloader.dataset.pipeline.transforms[0].ledger.add(
        os.fsdecode(b'/data/caf\xe9.jpg'), 'it is empty'
    )
    runner.train()
    assert 'caf\\udce9.jpg: it is empty' in (tmp_path / 'work/broken_pictures.txt').read_text()


@pytest.mark.parametrize('interval', [3, 8])
def test_checkpoints_of_iterations_hold_the_broken_pictures_met_so_far(
    tiny_job, pictures, tmp_path, interval
):
    config = job(tiny_job, pictures, max_broken=2)
    spoil(pictures, 1, 2)
    config.train_cfg = dict(type='IterBasedTrainLoop', max_iters=8, val_interval=100)
    config.default_hooks.checkpoint.update(by_epoch=False, interval=interval)
    Runner.from_cfg(config).train()
    saved = torch.load(tmp_path / f'work/iter_{interval}.pth')['message_hub']['runtime_info']
    assert saved['broken_pictures']
    if interval == 8:
        assert len(saved['broken_pictures']) == 2


def test_one_broken_picture_too_many_stops_with_all_of_them(tiny_job, pictures):
    broken = spoil(pictures, 1, 2, 3, 4)
    with pytest.raises(BrokenPictureError, match='4 broken pictures') as error:
        Runner.from_cfg(job(tiny_job, pictures, max_broken=3)).train()
    assert all(str(path) in str(error.value) for path in broken)


def names_in(listed):
    """The file names of a list of broken pictures."""
    return sorted(Path(line.split(': ')[0].strip()).name for line in listed.splitlines())


def test_two_processes_share_one_budget(tiny_job, pictures, tmp_path):
    """Each of them meets two of the four, and stops though it has not seen too many itself."""
    spoil(pictures, 1, 2, 3, 4)
    config = job(tiny_job, pictures, max_broken=3, train_dataloader=dict(batch_size=1))
    config.train_dataloader.sampler.shuffle = False
    config.train_cfg.val_begin = 3
    config.dump(tmp_path / 'two.py')
    with pytest.raises(AssertionError, match='error: 4 broken pictures in all processes'):
        run_tool('train', 2, [str(tmp_path / 'two.py'), '--skip-data-check'])
    listed = (tmp_path / 'work' / 'broken_pictures.txt').read_text()
    assert names_in(listed) == ['01.png', '02.png', '03.png', '04.png']


def test_a_resumed_run_goes_on_counting_though_it_does_not_meet_the_first_again(
    tiny_job, pictures, tmp_path
):
    """The third picture is spoilt between the runs, and the first two are whole again."""
    whole = {path: path.read_bytes() for path in pictures.iterdir()}

    def resume(**settings):
        config = job(tiny_job, pictures, **settings)
        config.resume = True
        config.experiment_name += f' {settings}'
        config.train_cfg.val_begin = 9
        return Runner.from_cfg(config)

    spoil(pictures, 1, 2)
    first = resume(max_broken=2)
    first.train_loop._max_epochs = 1
    first.train()
    for path, content in whole.items():
        path.write_bytes(content)
    spoil(pictures, 3)
    # One more is allowed: the list has all three.
    runner = resume(max_broken=3)
    runner.train()
    listed = (tmp_path / 'work' / 'broken_pictures.txt').read_text()
    assert names_in(listed) == ['01.png', '02.png', '03.png']
    (tmp_path / 'work' / 'last_checkpoint').write_text(str(tmp_path / 'work' / 'epoch_1.pth'))
    with pytest.raises(BrokenPictureError, match=r'3 broken pictures, .*max_broken=2') as error:
        resume(max_broken=2).train()
    assert all(name in str(error.value) for name in ('01.png', '02.png', '03.png'))


@pytest.mark.parametrize('persistent', [False, True])
def test_two_workers_share_one_budget(tiny_job, pictures, persistent):
    """Each has met two of the four, or all in two epochs if the workers live on."""
    broken = spoil(pictures, 1, 2, 3, 4)
    config = job(
        tiny_job,
        pictures,
        max_broken=3,
        train_dataloader=dict(num_workers=2, persistent_workers=persistent),
    )
    with pytest.raises(BrokenPictureError, match='4 broken pictures') as error:
        Runner.from_cfg(config).train()
    assert all(str(path) in str(error.value) for path in broken)


def test_validation_stops_at_a_truncated_picture(tiny_job, pictures):
    (path,) = spoil(pictures, 6)
    config = job(tiny_job, pictures, max_broken=3)
    for part in (config.train_dataloader, config.val_dataloader):
        part.dataset.data_prefix.img = str(pictures)
    with pytest.raises(BrokenPictureError, match=f'{path}: it is truncated'):
        Runner.from_cfg(config).val()


def test_the_same_others_are_drawn_from_the_same_random_state(tiny_coco, pictures):
    spoil(pictures, 1, 2)
    dataset = DATASETS.build(
        dict(
            type='mmdet.CocoDataset',
            ann_file=str(tiny_coco.annotations),
            data_prefix=dict(img=str(pictures)),
            pipeline=[loader(2), dict(type='mmdet.PackDetInputs', meta_keys=('img_id',))],
        )
    )

    def draw():
        np.random.seed(5)
        batch = pseudo_collate([dataset[i] for i in (0, 1, 0)])
        return [sample.img_id for sample in batch['data_samples']]

    drawn = draw()
    assert drawn == draw()
    assert not {1, 2} & set(drawn)
    assert len(set(drawn)) > 1


def test_a_budget_below_zero_is_refused():
    with pytest.raises(ValueError, match='max_broken must be 0 or more, got -1'):
        LoadImageChecked(dict(type='LoadImageFromFile'), max_broken=-1)
