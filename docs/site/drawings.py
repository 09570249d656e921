"""Makes the drawings of the documentation, docs/images/*.svg.

    python docs/site/drawings.py

Shapes are those of `deformable-detr_r50_16xb2-50e_coco` and one image of 800 x 1333 pixels; a test
holds them to the model. Needs nothing but Python.
"""

import math
from pathlib import Path
from xml.sax.saxutils import escape

IMAGES = Path(__file__).resolve().parents[1] / 'images'
SIZES = ((100, 167), (50, 84), (25, 42), (13, 21))
TOKENS = sum(height * width for height, width in SIZES)
FONT = 'font-family="system-ui, Segoe UI, Roboto, Helvetica, Arial, sans-serif"'
MONO = 'font-family="ui-monospace, Consolas, Menlo, monospace"'
INK, QUIET, LINE = '#1f2a33', '#5b6b78', '#8fa1ae'
MMDET, OURS, DATA, LOSS = '#e8edf1', '#d9efe9', '#ffffff', '#fbe9d7'
REFERENCE, POINT = '#c2571a', '#12876f'


def text(x, y, content, size=14, colour=INK, anchor='middle', font=FONT, weight='normal'):
    return (
        f'<text x="{x:g}" y="{y:g}" font-size="{size}" fill="{colour}" text-anchor="{anchor}" '
        f'font-weight="{weight}" {font}>{escape(content)}</text>'
    )


def box(x, y, width, height, title, lines=(), fill=OURS):
    """A part: its title, and quieter lines such as its file."""
    parts = [
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="7" fill="{fill}" '
        f'stroke="{LINE}"/>'
    ]
    top = y + height / 2 - 9 * len(lines) + 5
    parts.append(text(x + width / 2, top, title, 15, weight='600'))
    for number, line in enumerate(lines, start=1):
        parts.append(text(x + width / 2, top + 18 * number, line, 12, QUIET, font=MONO))
    return ''.join(parts)


def arrow(*points):
    """A line through points (x, y) that ends with a head."""
    path = ' '.join(f'{x:g},{y:g}' for x, y in points)
    return (
        f'<polyline points="{path}" fill="none" stroke="{QUIET}" stroke-width="1.6" '
        'marker-end="url(#head)"/>'
    )


def shape(x, y, content):
    return text(x, y, content, 13, INK, 'start', MONO)


def drawing(width, height, title, parts):
    head = (
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        f'markerHeight="7" orient="auto"><path d="M0,0 L8,4 L0,8 z" fill="{QUIET}"/></marker>'
        '</defs>'
    )
    body = '\n'.join((head, *parts))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img" aria-label="{escape(title)}">\n'
        f'<title>{escape(title)}</title>\n'
        f'<rect width="{width}" height="{height}" rx="10" fill="#fbfcfd"/>\n{body}\n</svg>\n'
    )


def grid(x, y, rows, columns, cell, fill=DATA):
    """A feature map, its cells drawn coarsely."""
    width, height = columns * cell, rows * cell
    lines = [f'M{x + i * cell:g},{y:g} v{height:g}' for i in range(1, columns)]
    lines += [f'M{x:g},{y + i * cell:g} h{width:g}' for i in range(1, rows)]
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" fill="{fill}" '
        f'stroke="{LINE}"/><path d="{" ".join(lines)}" stroke="{LINE}" stroke-width=".5"/>'
    )


def one_image():
    """The path of one image, from pixels to losses or detections."""
    left, width = 60, 290
    middle = left + width / 2
    beside = middle + 14
    parts = []

    def step(y, title, file, fill=OURS):
        parts.append(box(left, y, width, 54, title, (file,), fill))

    def down(y, *shapes, to=34):
        parts.append(arrow((middle, y), (middle, y + to)))
        for number, content in enumerate(shapes):
            parts.append(shape(beside, y + 21 + 17 * number, content))

    parts.append(text(middle, 32, 'one image, normalised and padded', 14, QUIET))
    down(40, '(B, 3, 800, 1333)')
    step(76, 'backbone', 'ResNet-50, from mmdet', MMDET)
    down(130, '(B, 512, 100, 167)', '(B, 1024, 50, 84)', '(B, 2048, 25, 42)', to=66)
    step(198, 'neck', 'ChannelMapper, from mmdet', MMDET)
    down(252, 'L = 4 maps of 256 channels:', to=66)
    for offset, (rows, columns), size in zip(
        (0, 94, 160, 222), ((8, 13), (4, 7), (2, 4), (1, 2)), SIZES
    ):
        cell = 5.6
        parts.append(grid(beside + 226 + offset, 262, rows, columns, cell))
        centre = beside + 226 + offset + columns * cell / 2
        parts.append(text(centre, 262 + rows * cell + 15, f'{size[0]} x {size[1]}', 11, QUIET))
    step(320, 'flatten', 'models/feature_levels.py')
    down(374, f'(B, S, C) = (B, {TOKENS}, 256)')
    step(410, 'encoder, 6 layers', 'models/layers/encoder.py')
    down(464, f'memory (B, {TOKENS}, 256)')
    step(500, 'query head', 'models/heads/query_head.py')
    down(554, 'query, query_pos (B, Q, C) = (B, 300, 256)', 'reference (B, 300, 2 or 4)', to=52)
    step(608, 'decoder, N = 6 layers', 'models/layers/decoder.py')
    # The memory passes the query head by.
    parts.append(arrow((left, 437), (30, 437), (30, 635), (left - 2, 635)))
    parts.append(
        f'<text transform="translate(22 545) rotate(-90)" font-size="12" fill="{QUIET}" '
        f'text-anchor="middle" {FONT}>memory</text>'
    )
    down(662, 'hidden (6, B, 300, 256)')
    step(698, 'box head', 'models/heads/bbox_head.py')
    # It makes the boxes of every layer, while the decoder runs.
    right = left + width
    parts.append(arrow((right, 714), (right + 70, 714), (right + 70, 646), (right + 2, 646)))
    parts.append(arrow((right, 624), (right + 96, 624), (right + 96, 736), (right + 2, 736)))
    parts.append(text(right + 108, 676, 'regress: boxes after every', 12, QUIET, 'start'))
    parts.append(text(right + 108, 692, 'layer, around its references', 12, QUIET, 'start'))
    parts.append(arrow((middle - 70, 752), (middle - 70, 832)))
    parts.append(arrow((middle + 70, 752), (middle + 70, 778), (550, 778), (550, 832)))
    parts.append(shape(left + 92, 796, 'logits (6, B, 300, 80)'))
    parts.append(shape(left + 92, 814, 'boxes (6, B, 300, 4)'))
    parts.append(text(562, 796, 'last layer', 12, QUIET, 'start'))
    parts.append(text(562, 812, 'alone', 12, QUIET, 'start'))
    training = ('losses/assigner.py matches', 'losses/criterion.py scores')
    parts.append(box(left, 834, width, 72, 'training: criterion', training, LOSS))
    prediction = ('the 100 best pairs of', 'query and class, in pixels')
    parts.append(box(410, 834, 280, 72, 'prediction', prediction, LOSS))
    return drawing(720, 926, 'The path of one image through Deformable DETR', parts)


def dot(x, y, radius, colour):
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="{colour}"/>'


def deformable_attention():
    """Where one query looks: L levels, P points around its reference on each."""
    parts = []
    # Coarsely, and each map at the size of the image: coarser levels have larger cells.
    levels = zip(SIZES, ((14, 22), (7, 11), (4, 6), (2, 3)), (1, 0.9, 0.7, 0.45))
    x, y, width = 20, 52, 150
    for level, (size, (rows, columns), spread) in enumerate(levels):
        cell = width / columns
        parts.append(text(x + width / 2, 36, f'level {level}: {size[0]} x {size[1]}', 13))
        parts.append(grid(x, y, rows, columns, cell))
        centre = x + 0.56 * width, y + 0.42 * rows * cell
        for degrees, cells in ((25, 0.7), (115, 1.25), (200, 1.0), (300, 1.6)):
            angle, distance = math.radians(degrees + 17 * level), cell * cells * spread
            to = centre[0] + distance * math.cos(angle), centre[1] + distance * math.sin(angle)
            parts.append(
                f'<line x1="{centre[0]:.1f}" y1="{centre[1]:.1f}" x2="{to[0]:.1f}" '
                f'y2="{to[1]:.1f}" stroke="{QUIET}"/>'
            )
            parts.append(dot(*to, 3.6, POINT))
        parts.append(dot(*centre, 4.2, REFERENCE))
        x += width + 26
    for left, radius, colour, words in (
        (30, 4.2, REFERENCE, "the query's reference, the same place on every level"),
        (430, 3.6, POINT, 'P = 4 points: reference + offset'),
    ):
        parts.append(dot(left, 178, radius, colour))
        parts.append(text(left + 12, 182, words, 13, anchor='start'))
    return drawing(724, 200, 'Where one head of one query looks on four levels', parts)


DRAWINGS = {'one_image.svg': one_image, 'deformable_attention.svg': deformable_attention}

if __name__ == '__main__':
    IMAGES.mkdir(exist_ok=True)
    for name, draw in DRAWINGS.items():
        (IMAGES / name).write_text(draw(), encoding='utf-8')
