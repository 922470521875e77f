"""Charts as plain SVG, panels side by side: lines over file sizes, or bars to compare."""

import math
from html import escape

WIDTH, HEIGHT = 470, 300
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 34, 44
LEGEND = 34


def steps(most, count=5):
    """Round values from 0 to beyond `most`."""
    rough = max(most, 1e-9) / count
    unit = 10 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough)
    return [step * i for i in range(math.ceil(most / step) + 1)]


def size_name(size):
    return f"{size >> 30} GiB" if size >= 1 << 30 else f"{size >> 20} MiB"


def panel(left, top, title, unit, lines, styles):
    """`lines`: {name: {size: value}}, drawn in {name: (colour, dash)} of `styles`."""
    sizes = sorted({size for line in lines.values() for size in line})
    marks = steps(max(value for line in lines.values() for value in line.values()))
    across, down = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    x = {size: left + LEFT + across * (i / max(1, len(sizes) - 1)) for i, size in enumerate(sizes)}
    y = lambda value: top + TOP + down * (1 - value / marks[-1])
    out = [f'<text x="{left + LEFT}" y="{top + 20}" font-weight="bold">{escape(title)}</text>']
    for mark in marks:
        out.append(f'<line x1="{left + LEFT}" x2="{left + WIDTH - RIGHT}" y1="{y(mark):.1f}" y2="{y(mark):.1f}" '
                   f'stroke="#ddd"/><text x="{left + LEFT - 6}" y="{y(mark) + 4:.1f}" text-anchor="end">{mark:g}</text>')
    for size in sizes:
        out.append(f'<text x="{x[size]:.1f}" y="{top + HEIGHT - BOTTOM + 18}" text-anchor="middle">{size_name(size)}</text>')
    out.append(f'<text x="{left + 14}" y="{top + TOP + down / 2:.1f}" text-anchor="middle" '
               f'transform="rotate(-90 {left + 14} {top + TOP + down / 2:.1f})">{escape(unit)}</text>')
    for name, line in lines.items():
        colour, dash = styles[name]
        points = " ".join(f"{x[size]:.1f},{y(value):.1f}" for size, value in sorted(line.items()))
        out.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}"/>')
        out += [f'<circle cx="{x[size]:.1f}" cy="{y(value):.1f}" r="3" fill="{colour}"/>' for size, value in line.items()]
    return out


def chart(panels, unit, styles):
    """`panels`: {title: lines}."""
    rows = math.ceil(len(panels) / 2)
    width, height = 2 * WIDTH, LEGEND + rows * HEIGHT
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
           'font-family="sans-serif" font-size="12">', '<rect width="100%" height="100%" fill="white"/>']
    used = [name for name in styles if any(name in lines for lines in panels.values())]
    for i, name in enumerate(used):
        at, (colour, dash) = LEFT + i * (width - LEFT) / len(used), styles[name]
        out.append(f'<line x1="{at:.0f}" x2="{at + 30:.0f}" y1="20" y2="20" stroke="{colour}" stroke-width="2" '
                   f'stroke-dasharray="{dash}"/><text x="{at + 36:.0f}" y="24">{escape(name)}</text>')
    for i, (title, lines) in enumerate(panels.items()):
        out += panel(i % 2 * WIDTH, LEGEND + i // 2 * HEIGHT, title, unit, lines, styles)
    return "\n".join(out + ["</svg>", ""])


BAR_WIDTH, BAR_HEIGHT, BARS_TO_A_ROW = 310, 190, 3


def bar_panel(left, top, title, values, colours):
    most = max(values.values())
    across, base = (BAR_WIDTH - 20) / len(values), top + BAR_HEIGHT - 26
    out = [f'<text x="{left + BAR_WIDTH / 2}" y="{top + 16}" text-anchor="middle" font-size="10">{escape(title)}</text>']
    for i, (name, value) in enumerate(values.items()):
        height = (BAR_HEIGHT - 70) * value / max(most, 1e-9)
        middle = left + 10 + across * (i + 0.5)
        shown = f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
        out.append(f'<rect x="{middle - across * 0.4:.1f}" y="{base - height:.1f}" width="{across * 0.8:.1f}" height="{height:.1f}" '
                   f'fill="{colours[name]}"/><text x="{middle:.1f}" y="{base - height - 4:.1f}" text-anchor="middle" '
                   f'font-size="10">{shown}</text><text x="{middle:.1f}" y="{base + 14}" text-anchor="middle" font-size="10">'
                   f'{escape(name)}</text>')
    return out


def bars(panels, colours):
    """`panels`: {title with its unit: {name: value}}, drawn in {name: colour}."""
    rows = math.ceil(len(panels) / BARS_TO_A_ROW)
    width, height = BAR_WIDTH * BARS_TO_A_ROW, BAR_HEIGHT * rows
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
           'font-family="sans-serif">', '<rect width="100%" height="100%" fill="white"/>']
    for i, (title, values) in enumerate(panels.items()):
        out += bar_panel(i % BARS_TO_A_ROW * BAR_WIDTH, i // BARS_TO_A_ROW * BAR_HEIGHT, title, values, colours)
    return "\n".join(out + ["</svg>", ""])
