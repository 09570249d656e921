"""Figures: accuracy over epochs (the paper's Figure 3), cost over image size, growth of a step."""

import itertools

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt  # noqa: E402  the backend is chosen first: no screen is needed

__all__ = ['draw_accuracy', 'draw_cost', 'draw_scaling', 'spread']

LABELS = {'mAP': 'AP', 'mAP_s': 'AP of small objects', 'PQ': 'PQ'}


def draw_accuracy(curves, path, unit='epoch'):
    """Writes a PNG over time: AP (left) and AP of small objects; PQ (right) if a curve has it.

    Args:
        curves: name -> list of (time, metrics), or of several such lists: repetitions, whose mean
            is drawn over a band from the least to the greatest. `metrics` is a dict with mAP and
            perhaps mAP_s, or with PQ, in 0..1.
        path: of the PNG.
        unit: of the time.
    """
    drawn = {
        metric: {name: found for name, runs in curves.items() if any(found := spread(runs, metric))}
        for metric in LABELS
    }
    panels = [metric for metric in LABELS if drawn[metric]] or ['mAP']
    size = (5.5 * len(panels), 4)
    figure, axes = plt.subplots(1, len(panels), figsize=size, layout='constrained', squeeze=False)
    for axis, metric in zip(axes[0], panels):
        for name, (times, means, low, high) in drawn[metric].items():
            (line,) = axis.plot(times, means, marker='.', label=name)
            axis.fill_between(times, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
        axis.set(xlabel=unit, ylabel=LABELS[metric])
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
        axis.legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def spread(runs, metric):
    """Mean, least and greatest value of a metric over repetitions, where all have it.

    Args:
        runs: list of (time, metrics), or list of such lists.

    Returns:
        times, means, least, greatest: four lists.
    """
    if runs and isinstance(runs[0], tuple):
        runs = [runs]
    values = [{time: m[metric] for time, m in run if metric in m} for run in runs]
    times = sorted(set.intersection(*map(set, values))) if values else []
    columns = [[run[time] for run in values] for time in times]
    means = [sum(column) / len(column) for column in columns]
    return times, means, [min(c) for c in columns], [max(c) for c in columns]


def draw_cost(costs, path):
    """Writes a PNG: multiply-adds over the area of the picture.

    Args:
        costs: name -> {(height, width): multiply-adds}.
        path: of the PNG.
    """
    figure, axis = plt.subplots(figsize=(9, 5), layout='constrained')
    # Twenty colours, and other marks where models cost the same and lie on each other.
    looks = zip(itertools.cycle(plt.get_cmap('tab20').colors), itertools.cycle('os^vDP*X<>'))
    by_largest = sorted(costs.items(), key=lambda item: max(item[1].values()), reverse=True)
    for (name, by_size), (colour, mark) in zip(by_largest, looks):
        points = sorted((h * w / 1e6, cost / 1e9) for (h, w), cost in by_size.items())
        axis.plot(*zip(*points), marker=mark, color=colour, label=name)
    axis.set(xlabel='picture, megapixels', ylabel='10⁹ multiply-adds')
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.3)
    figure.legend(fontsize='small', loc='outside right upper')
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_scaling(rows, path):
    """Writes a PNG: seconds a step of ours and of mmdet's, a panel per quantity that grows.

    Args:
        rows: dicts with quantity, value, mmdet_ms and ours_ms. Sides of images are drawn as their
            area, in which the tokens are linear.
        path: of the PNG.
    """
    quantities = list(dict.fromkeys(row['quantity'] for row in rows))
    size = (4 * len(quantities), 3.5)
    figure, (axes,) = plt.subplots(1, len(quantities), figsize=size, squeeze=False)
    for axis, quantity in zip(axes, quantities):
        part = [row for row in rows if row['quantity'] == quantity]
        x = [row['value'] for row in part]
        if quantity == 'picture side':
            x = [value**2 for value in x]
        for name in ('mmdet', 'ours'):
            axis.plot(x, [row[f'{name}_ms'] / 1e3 for row in part], marker='o', label=name)
        axis.set_xlabel('pixels' if quantity == 'picture side' else quantity)
        axis.set_ylim(bottom=0)
        axis.set_ylabel('seconds a step')
        axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    plt.close(figure)
