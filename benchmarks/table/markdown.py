"""The Markdown of `python -m benchmarks.table`: our columns beside the published ones."""

from benchmarks.table.published_results import RELEASE

__all__ = ['TOLERANCE', 'deviations', 'markdown']

TOLERANCE = 0.03  # of parameters and multiply-adds, beyond which a note says so
NONE = '–'
APS = (('AP', 'mAP', 'ap'), ('AP_S', 'mAP_s', 'ap_small'), ('AP_M', 'mAP_m', 'ap_medium'))
APS += (('AP_L', 'mAP_l', 'ap_large'),)


def _number(value, form='.1f'):
    return NONE if value is None else format(value, form)


def _measured(row, part, batch, precision, key='median_ms'):
    """One number of a row's measurements; None if it was not taken."""
    for found in row.get('timings', ()):
        if (found['part'], found['batch'], found['precision']) == (part, batch, precision):
            return found.get(key)
    return None


def _speeds(report):
    """(part, batch, precision) of all measurements of a report, in their order."""
    keys = {}
    for row in report['rows']:
        for found in row.get('timings', ()):
            keys[found['part'], found['batch'], found['precision']] = None
    return list(keys)


def deviations(row):
    """{'params_m' or 'gflops': ours / published - 1}; what cannot be compared is left out."""
    published = row.get('published') or {}
    pairs = (('params_m', row.get('params_m')), ('gflops', row.get('gflops_mean')))
    return {
        name: ours / published[name] - 1
        for name, ours in pairs
        if ours is not None and published.get(name)
    }


def _columns(report):
    """Header -> function from a row to its cell."""

    def published(name, form='.1f'):
        return lambda row: _number((row.get('published') or {}).get(name), form)

    def ours(name, form='.1f'):
        return lambda row: _number(row.get(name), form)

    def ap(name):
        def cell(row):
            value = (row.get('accuracy') or {}).get(name)
            return _number(None if value is None else value * 100)

        return cell

    def speed(key, of):
        return lambda row: of(_measured(row, *key))

    columns = {'method': lambda row: row['method'], 'epochs': published('epochs', 'd')}
    for title, name, theirs in APS:
        columns[title] = ap(name)
        columns[f'{title} publ.'] = published(theirs)
    columns['mask AP'] = ap('mask_mAP')
    columns['PQ'] = ap('PQ')
    columns['PQ publ.'] = published('pq')
    columns['params M'] = ours('params_m')
    columns['params publ.'] = published('params_m', 'd')
    for size in report['sizes']:
        columns[f'G at {size}'] = lambda row, size=size: _number(row.get('gflops', {}).get(size))
    columns['G mean'] = ours('gflops_mean')
    columns['G publ.'] = published('gflops', 'd')
    for key in _speeds(report):
        part, batch, precision = key
        label = f'{precision}, batch {batch}'
        if part == 'inference':
            columns[f'ms, {label}'] = speed(key, _number)
            columns[f'FPS, {label}'] = speed(
                key, lambda ms, batch=batch: _number(ms and batch * 1e3 / ms, '.2f')
            )
        else:
            columns[f'training step ms, {label}'] = speed(key, _number)
        columns[f'{part} peak MiB, {label}'] = speed((*key, 'peak_MiB'), lambda x: _number(x, 'd'))
    columns['FPS publ. (V100, batch 1 / 4)'] = lambda row: (
        ' / '.join(map(str, (row.get('published') or {}).get('fps') or ())) or NONE
    )
    columns['GPU-hours publ.'] = published('gpu_hours', 'd')
    return columns


def _notes(report):
    for row in report['rows']:
        source = (row.get('published') or {}).get('source')
        if source not in (None, RELEASE):
            yield f'- **{row["method"]}** (`{row["config"]}`): published in {source}'
        for reason in row.get('reasons', ()):
            yield f'- **{row["method"]}** (`{row["config"]}`): {reason}'
        for found in row.get('timings', ()):
            if 'error' in found:
                what = f'{found["part"]}, {found["precision"]}, batch {found["batch"]}'
                yield f'- **{row["method"]}** (`{row["config"]}`), {what}: {found["error"]}'
        for name, deviation in deviations(row).items():
            if abs(deviation) > TOLERANCE:
                label = {'params_m': 'parameters', 'gflops': 'mean multiply-adds'}[name]
                yield (
                    f'- **{row["method"]}** (`{row["config"]}`): {label} differ from the '
                    f'published by {deviation:+.1%}'
                )


def markdown(report):
    """The report of run.py as Markdown: one table, then what to know about it."""
    columns = _columns(report)
    cells = [[cell(row) for cell in columns.values()] for row in report['rows']]
    # A column in which nothing was measured says nothing.
    used = [
        i
        for i, title in enumerate(columns)
        if any(row[i] != NONE for row in cells) or title.endswith('publ.') or i < 2
    ]
    titles = list(columns)
    lines = [
        '| ' + ' | '.join(titles[i] for i in used) + ' |',
        '|' + '---|' * len(used),
        *('| ' + ' | '.join(row[i] for i in used) + ' |' for row in cells),
        '',
        'G: 10⁹ multiply-adds, each counted once, for one picture. "G mean" is the one to compare '
        f'with the published number: {report["mean_over"]}. Parameters: trainable ones. '
        f'"publ.": published, COCO val2017; where no note says otherwise, in the {RELEASE}.',
    ]
    machine = report['environment']
    if report['timing']:
        timing = report['timing']
        lines += [
            '',
            f'Times: {machine["device"]}, {timing["size"]} pictures, median of '
            f'{timing["rounds"]}, without loading; {machine["threads"]} CPU threads.',
        ]
    notes = list(_notes(report))
    if notes:
        lines += ['', *notes]
    lines += ['', f'Commit {machine["commit"]}, torch {machine["torch"]}.']
    return '\n'.join(lines) + '\n'
