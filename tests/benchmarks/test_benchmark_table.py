"""The table beside the published results: its rows, its numbers, and what stands in their place."""

import json
import sys
from pathlib import Path

import cv2
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, DefaultScope
from mmengine.runner import Runner

from benchmarks import figures, processes
from benchmarks.table import accuracy, detector_timing, markdown
from benchmarks.table import run as benchmark
from benchmarks.table.published_results import PUBLISHED, Published, find
from ddetr_plugin.config_files import config_files, find_config
from ddetr_plugin.ops import native_load_error

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT.parent / 'shared' / 'reference' / 'published-results.md'
needs_native = pytest.mark.skipif(native_load_error() is not None, reason='native op not built')


def table_of(text):
    """Rows of the first Markdown table: list of dicts."""
    lines = [line for line in text.splitlines() if line.startswith('|')]
    cells = [[cell.strip() for cell in line.strip('|').split('|')] for line in lines]
    return [dict(zip(cells[0], row)) for row in cells[2:]]


@pytest.mark.skipif(not REFERENCE.exists(), reason=f'{REFERENCE.name} is not here')
def test_the_published_rows_are_those_of_the_reference_in_its_order():
    def numbers(text):
        return tuple(float(part) for part in text.split('/'))

    expected = [
        (int(row['epochs']), numbers(row['AP']), numbers(row['AP_S']), numbers(row['AP_M']))
        + (numbers(row['AP_L']), numbers(row['params M']), numbers(row['GFLOPs']))
        + (int(row['GPU-hours']), numbers(row['FPS']))
        for row in table_of(REFERENCE.read_text())
    ]
    found = [
        (r.epochs, (r.ap,), (r.ap_small,), (r.ap_medium,), (r.ap_large,))
        + ((r.params_m,), (r.gflops,), r.gpu_hours, r.fps)
        for r in PUBLISHED[: len(expected)]
    ]
    assert found == expected


def test_every_published_row_has_a_config_name_of_its_own():
    names = [row.config for row in PUBLISHED]
    assert len(set(names)) == len(names)
    assert find('deformable-detr_r50_16xb2-50e_coco').ap == 44.5
    assert find('deformable-detr_vit-small-p16_16xb2-50e_coco').ap is None
    assert find('detr-panoptic_r50_16xb4-500e_coco').pq == 43.4
    assert find('unheard-of') is None


def test_every_system_of_the_configs_is_a_row_of_the_table():
    """All but other ways to run a model that has a row, and the demo's."""
    other = {'deformable-detr_r50_16xb2-50e_fsdp_coco', 'deformable-detr_r50_official-eval_coco'}
    files = {name for name in config_files() if name.endswith('_coco')}
    assert {row.config for row in PUBLISHED} == files - other


def report_of(*rows, timing=None):
    environment = {'commit': 'abc', 'torch': '2', 'device': 'a CPU', 'threads': 1}
    return {
        'environment': environment,
        'sizes': ['800 x 1333'],
        'mean_over': 'one picture',
        'timing': timing,
        'rows': list(rows),
    }


def test_a_deviation_of_more_than_three_per_cent_is_noted():
    published = {'params_m': 40, 'gflops': 173}
    row = {'method': 'M', 'config': 'c', 'published': published, 'params_m': 41.0}
    row['gflops_mean'] = 180.0
    assert markdown.deviations(row) == {
        'params_m': pytest.approx(0.025),
        'gflops': pytest.approx(0.0405, abs=1e-4),
    }
    text = markdown.markdown(report_of(row))
    assert 'mean multiply-adds differ from the published by +4.0%' in text
    assert 'parameters differ' not in text


def test_a_row_that_nobody_published_has_dashes_and_other_sources_are_noted():
    mine = {'method': 'Mine', 'config': 'a', 'params_m': 35.6, 'gflops_mean': 300.0}
    mine['published'] = Published('a', 'Mine', 50, source=None)._asdict()
    other = dict(mine, method='Other', config='b')
    other['published'] = Published('b', 'Other', 12, 40.0, source='a paper')._asdict()
    text = markdown.markdown(report_of(mine, other))
    cells, others = table_of(text)
    assert (cells['epochs'], cells['AP publ.'], cells['params M']) == ('50', '–', '35.6')
    assert others['AP publ.'] == '40.0'
    assert '- **Other** (`b`): published in a paper' in text
    assert '**Mine**' not in text


def test_times_become_frames_per_second_and_failures_become_notes():
    timings = [
        dict(part='inference', batch=4, precision='float32', median_ms=500.0, peak_MiB=100),
        dict(part='training', batch=2, precision='bfloat16', error='no such kernel'),
    ]
    row = {'method': 'M', 'config': 'c', 'published': None, 'timings': timings}
    text = markdown.markdown(report_of(row, timing={'size': '32 x 32', 'rounds': 2}))
    (cells,) = table_of(text)
    assert cells['ms, float32, batch 4'] == '500.0'
    assert cells['FPS, float32, batch 4'] == '8.00'
    assert cells['inference peak MiB, float32, batch 4'] == '100'
    assert 'training step ms, bfloat16, batch 2' not in cells
    assert '- **M** (`c`), training, bfloat16, batch 2: no such kernel' in text


def write_log(work_dir, name, *points):
    """mmengine's scalars of a run: losses, and validations of (step, AP, AP of small objects)."""
    folder = work_dir / name / 'vis_data'
    folder.mkdir(parents=True)
    lines = [{'loss': 1.0, 'iter': 1, 'step': 1}]
    for step, ap, small in points:
        lines.append({'coco/bbox_mAP': ap, 'coco/bbox_mAP_s': small, 'step': step})
    (folder / 'scalars.json').write_text('\n'.join(map(json.dumps, lines)))
    return folder / 'scalars.json'


def test_accuracy_is_read_from_tests_logs_and_work_folders(tmp_path):
    log = write_log(tmp_path / 'work', '1', (1, 0.1, -1.0), (2, 0.3, 0.2))
    newest = {'mAP': 0.3, 'mAP_s': 0.2}
    assert accuracy.read_accuracy(log) == accuracy.read_accuracy(tmp_path / 'work') == newest
    metrics = tmp_path / 'metrics.json'
    metrics.write_text(json.dumps({'bbox_mAP': 0.5, 'bbox_mAP_l': -1.0, 'iterations': 3}))
    assert accuracy.read_accuracy(metrics) == {'mAP': 0.5}
    metrics.write_text(json.dumps({'coco/bbox_mAP': 0.5, 'coco/segm_mAP': 0.4}))
    assert accuracy.read_accuracy(metrics) == {'mAP': 0.5, 'mask_mAP': 0.4}
    metrics.write_text(json.dumps({'coco_panoptic/PQ': 43.5, 'coco_panoptic/SQ': 80.0}))
    assert accuracy.read_accuracy(metrics) == {'PQ': 0.435}
    metrics.write_text('{"loss": 1}')
    with pytest.raises(ValueError, match='no box AP'):
        accuracy.read_accuracy(metrics)


def test_the_work_folder_of_a_panoptic_training_is_a_curve_of_its_quality(tmp_path):
    log = write_log(tmp_path / 'segments', '1')
    lines = [{'coco_panoptic/PQ': 100 * pq, 'step': step} for step, pq in ((1, 0.2), (2, 0.4))]
    log.write_text('\n'.join(map(json.dumps, lines)))
    assert accuracy.read_accuracy(tmp_path / 'segments') == {'PQ': 0.4}
    segments = accuracy.read_curve(tmp_path / 'segments')
    assert segments == [(1, {'PQ': 0.2}), (2, {'PQ': 0.4})]
    write_log(tmp_path / 'boxes', '1', (1, 0.1, 0.05), (2, 0.3, 0.2))
    boxes = accuracy.read_curve(tmp_path / 'boxes')
    # A picture has a panel of 5.5 inches for each metric that a curve has.
    for curves, panels in (({'a': segments}, 1), ({'a': segments, 'b': boxes}, 3)):
        figures.draw_accuracy(curves, tmp_path / 'a.png')
        assert cv2.imread(str(tmp_path / 'a.png')).shape[1] == panels * 605


def test_a_resumed_training_is_one_curve(tmp_path):
    write_log(tmp_path, '1', (1, 0.1, -1.0), (2, 0.2, 0.1))
    write_log(tmp_path, '2', (2, 0.25, 0.1), (3, 0.3, 0.2))
    curve = accuracy.read_curve(tmp_path)
    assert [(step, metrics['mAP']) for step, metrics in curve] == [(1, 0.1), (2, 0.25), (3, 0.3)]
    with pytest.raises(ValueError, match='no validation'):
        accuracy.read_curve(tmp_path / 'elsewhere')


def test_epochs_and_iterations_are_not_drawn_on_one_axis(tmp_path, capsys):
    write_log(tmp_path / 'steps', '1', (1, 0.1, 0.1))
    log = write_log(tmp_path / 'epochs', '1', (1, 0.1, 0.1))
    log.write_text(log.read_text() + '\n' + json.dumps({'loss': 1.0, 'iter': 9, 'epoch': 1}))
    assert accuracy.read_unit(tmp_path / 'steps') == 'iteration'
    assert accuracy.read_unit(tmp_path / 'epochs') == 'epoch'
    logs = [f'{name}={tmp_path / name}' for name in ('steps', 'epochs')]
    with pytest.raises(SystemExit):
        benchmark.main(['--table', '--out', str(tmp_path / 'out'), '--logs', *logs])
    assert 'draw them apart' in capsys.readouterr().err


def test_repetitions_are_averaged_where_all_of_them_have_a_value():
    runs = [[(1, {'mAP': 0.1}), (2, {'mAP': 0.2})], [(1, {'mAP': 0.3}), (2, {})]]
    times, means, low, high = figures.spread(runs, 'mAP')
    assert (times, low, high) == ([1], [0.1], [0.3])
    assert means == pytest.approx([0.2])
    assert figures.spread(runs[0], 'mAP')[0] == [1, 2]


@needs_native
def test_the_tool_measures_what_it_can_and_says_what_it_cannot(
    tiny_job, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(benchmark, 'GROWTH', (0.5,))
    good, broken = (
        tiny_job('good.py'),
        tiny_job('broken.py', **{'model.neck.type': 'mmdet.Nothing'}),
    )
    annotations = Config.fromfile(good).val_evaluator.ann_file
    write_log(tmp_path / 'log', '1', (1, 0.1, 0.05), (2, 0.3, 0.2))
    out = tmp_path / 'out'
    arguments = [str(good), str(broken), '--out', str(out), '--skip-timing']
    arguments += ['--sizes', '48x64', '96x128', '--images', str(annotations), '--max-images', '2']
    arguments += ['--results', f'good={tmp_path / "log"}', '--logs', f'good={tmp_path / "log"}']
    benchmark.main(arguments)

    report = json.loads((out / 'benchmark.json').read_text())
    row, failed = report['rows']
    assert row['reasons'] == [] and row['accuracy'] == {'mAP': 0.3, 'mAP_s': 0.2}
    small, large = row['gflops']['48 x 64'], row['gflops']['96 x 128']
    assert 2 < large / small < 4.5
    # Both pictures are 48 x 64, of which the network sees 800 x 1067.
    assert row['gflops_mean'] > large
    model = detector_timing.build_model(Config.fromfile(good))
    assert row['parameters'] == sum(p.numel() for p in model.parameters() if p.requires_grad)
    (reason,) = failed['reasons']
    assert 'Nothing' in reason
    assert report['environment']['mmdet'] and 'commit' in report['environment']
    cells, other = table_of((out / 'table.md').read_text())
    assert (cells['AP'], cells['AP_S'], other['AP']) == ('30.0', '20.0', '–')
    assert cells['params M'] == f'{row["params_m"]:.1f}'
    assert reason in (out / 'table.md').read_text()
    for name in ('cost.png', 'accuracy.png'):
        assert cv2.imread(str(out / name)) is not None
    assert 'good: measured' in capsys.readouterr().err


def annotate_as_predicted(model, dataset, annotations, path):
    """Writes ground truth that a model has partly right: its own best box on each picture."""
    content = json.loads(annotations.read_text())
    content['annotations'] = []
    for sample in dataset:
        (result,) = model.test_step(pseudo_collate([sample]))
        box = result.pred_instances.bboxes[0].tolist()
        width, height = box[2] - box[0], box[3] - box[1]
        label = int(result.pred_instances.labels[0])
        content['annotations'].append(
            dict(id=result.img_id, image_id=result.img_id, category_id=label + 1, iscrowd=0)
            | dict(bbox=[*box[:2], width, height], area=width * height)
        )
    path.write_text(json.dumps(content))


def test_a_checkpoint_is_evaluated_on_the_test_data_of_its_config(
    tiny_job, tiny_coco, tmp_path, monkeypatch, forked_commands
):
    monkeypatch.setattr(benchmark, 'measure_cost', lambda *_: {})
    file = tmp_path / 'predicted.json'
    path = tiny_job(
        'good.py',
        **{'test_evaluator.ann_file': str(file), 'test_dataloader.dataset.ann_file': str(file)},
    )
    config = Config.fromfile(path)
    model = detector_timing.build_model(config).eval()
    torch.save({'state_dict': model.state_dict()}, tmp_path / 'weights.pth')
    with DefaultScope.overwrite_default_scope('mmdet'):
        dataset = DATASETS.build(config.val_dataloader.dataset)
    annotate_as_predicted(model, dataset, tiny_coco.annotations, file)

    out = tmp_path / 'out'
    arguments = [str(path), '--out', str(out), '--skip-timing', '--sizes', '48x64']
    benchmark.main([*arguments, '--checkpoints', f'good={tmp_path / "weights.pth"}'])
    (row,) = json.loads((out / 'benchmark.json').read_text())['rows']
    assert row['reasons'] == []
    config.load_from = str(tmp_path / 'weights.pth')
    config.work_dir = str(tmp_path / 'again')
    expected = Runner.from_cfg(config).test()
    assert expected['coco/bbox_mAP'] > 0.05
    assert row['accuracy']['mAP'] == expected['coco/bbox_mAP']
    (cells,) = table_of((out / 'table.md').read_text())
    assert cells['AP'] == f'{100 * expected["coco/bbox_mAP"]:.1f}'


def test_a_row_without_a_config_file_says_so(tmp_path):
    _, args = benchmark.parse_args(['--table', '--out', str(tmp_path)])
    row, costs = benchmark.measure_row(tmp_path / 'absent.py', args, [(48, 64)])
    assert row['reasons'] == [f'{tmp_path / "absent.py"} does not exist'] and costs == {}


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--out', 'x'], 'give config files, or --table'),
        (['missing.py', '--out', 'x'], 'missing.py does not exist'),
        (['--table', '--out', 'x', '--sizes', '800'], 'a size is HEIGHTxWIDTH'),
        (['--table', '--out', 'x', '--results', 'a'], 'expected NAME=PATH'),
        (['--table', '--out', 'x', '--results', 'a=b'], 'a is no row of this table'),
        (
            ['--table', '--out', 'x', '--checkpoints', 'detr_r50_16xb4-500e_coco=missing.pth'],
            'missing.pth does not exist',
        ),
        (['--table', '--out', 'x', '--images', 'nowhere'], 'neither a folder nor a file'),
        (['--table', '--out', 'x', '--logs', 'a=nowhere'], 'no validation with box AP'),
    ],
)
def test_a_wrong_command_line_says_what_is_wrong(arguments, message, capsys):
    with pytest.raises(SystemExit):
        benchmark.main(arguments)
    assert message in capsys.readouterr().err


def test_predictions_and_training_steps_are_timed_in_both_precisions(tiny_job, forked_commands):
    rows = detector_timing.measure_apart(
        tiny_job(),
        dict(device='cpu', size=(48, 64), parts=['inference', 'training'], batches=[1, 2])
        | dict(train_batch=2, precisions=['float32', 'bfloat16'], rounds=1, threads=1),
    )
    expected = [('inference', 1), ('inference', 1), ('inference', 2), ('inference', 2)]
    assert [(row['part'], row['batch']) for row in rows] == expected + [('training', 2)] * 2
    assert [row['precision'] for row in rows] == ['float32', 'bfloat16'] * 3
    assert all(row['median_ms'] >= row['min_ms'] > 0 for row in rows)


def test_a_process_that_fails_is_named_with_its_last_words(tmp_path, monkeypatch):
    failing = [sys.executable, '-c', 'raise SystemExit("first line\\nno such part")']
    monkeypatch.setattr(processes, 'module_command', lambda *_: failing)
    with pytest.raises(RuntimeError, match=r'tiny\.py could not be timed: no such part'):
        detector_timing.measure_apart(tmp_path / 'tiny.py', {})


def test_a_model_is_initialised_without_files_and_its_config_stays_as_it_is():
    """Before that, proposals of Sparse R-CNN have negative sizes, which RoIAlign refuses."""
    config = Config.fromfile(find_config('sparse-rcnn_r50_fpn_300-proposals_8xb2-36e_coco'))
    config.model.backbone.depth = 18
    config.model.neck.in_channels = [64, 128, 256, 512]
    config.model.roi_head.update(num_stages=1, stage_loss_weights=[1])
    config.model.roi_head.bbox_head = config.model.roi_head.bbox_head[:1]
    before = config.model.to_dict()
    assert config.model.backbone.init_cfg.type == 'Pretrained'
    model = detector_timing.build_model(config)
    proposals = model.rpn_head.init_proposal_bboxes.weight
    assert (proposals == proposals.new_tensor([0.5, 0.5, 1, 1])).all()
    assert config.model.to_dict() == before


@pytest.mark.parametrize(
    ('device', 'ratio', 'chosen'),
    [('cpu', 0.6, 2), ('cpu', 8.0, 1), ('cuda', 8.0, 2)],
    ids=['a CPU that gains', 'a CPU that does not', 'a GPU'],
)
def test_16_bits_are_timed_where_they_help_or_are_asked_for(
    monkeypatch, capsys, device, ratio, chosen
):
    monkeypatch.setattr(benchmark.precision, 'time_ratio', lambda dtype: ratio)
    assert benchmark.choose_precisions(device) == ['float32', 'bfloat16'][:chosen]
    said = 'takes 8.0 times as long' in capsys.readouterr().err
    assert said == (chosen == 1)
