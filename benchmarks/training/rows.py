"""The rows of the report, and their lines on the screen."""

import statistics

from benchmarks.timing import spread

HEADER = f'{"size":16} {"part":16} {"model":24} {"median ms":>10} {"mmdet / it":>11}'


def rows_of(size, batch, times):
    """Table rows from lists of milliseconds: part -> implementation -> times."""
    rows = []
    for part, runs in times.items():
        ours = statistics.median(runs['ours'])
        reference = statistics.median(runs['mmdet'])
        for name, values in runs.items():
            median = statistics.median(values)
            rows.append(
                {
                    'size': size,
                    'batch': batch,
                    'part': part,
                    'implementation': name,
                    **spread(values),
                    'times_ours': round(median / ours, 2),
                    'mmdet_over_it': round(reference / median, 2),
                }
            )
    return rows


def add_rows(report, rows):
    """Puts table rows into the report and prints them."""
    for row in rows:
        report['results'].append(row)
        print(
            f'{row["size"]:16} {row["part"]:16} {row["implementation"]:24} '
            f'{row["median_ms"]:10.1f} {row["mmdet_over_it"]:11.2f}',
            flush=True,
        )
