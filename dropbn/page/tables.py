"""A table that its reader can sort."""

import itertools
import json
import math
import statistics
from collections.abc import Mapping
from decimal import Decimal
from types import MappingProxyType

from dropbn.page.parts import breakable, escape

_NONE = "&ndash;"


def table_of_rows(rows: list[dict], caption: str, words: Mapping[str, str] = MappingProxyType({})) -> str:
    """A table with a column for each key that has a value in some row; page.js sorts it.

    A key K and K_interval make one column, "mean ± half width"; a key "interval" goes with the key before it.
    The numbers of a column have the same decimals. Cells are sorted by their attribute data-value: the exact
    number or the text, or "" if there is none.

    Args:
      rows: dicts of text, numbers and None.
      caption: the text above the table.
      words: key -> what it means, shown where a pointer rests on the heading.

    Returns:
      The HTML; "" if no row has any value.
    """
    keys = list(dict.fromkeys(key for row in rows for key in row))
    half_of = {key: f"{key}_interval" for key in keys if f"{key}_interval" in keys}
    half_of |= {before: key for before, key in itertools.pairwise(keys) if key == "interval"}
    half_of = {key: half for key, half in half_of.items() if _are_numbers(rows, key, half)}
    shown = [key for key in keys if any(row.get(key) is not None for row in rows)]
    shown = [key for key in shown if key not in half_of.values()]
    if not shown:
        return ""
    columns = [
        _column(rows, key, half_of.get(key), "th" if key == shown[0] else "td", words.get(key, ""))
        for key in shown
    ]
    head, *body = (f"<tr>{''.join(cells)}</tr>" for cells in zip(*columns, strict=True))
    lines, caption = "\n".join(body), escape(caption)
    return f"""<div class="scroll" role="region" tabindex="0" aria-label="{caption}">
<table>
<caption><span>{caption}</span></caption>
<thead>{head}</thead>
<tbody>
{lines}
</tbody>
</table>
</div>
"""


def _are_numbers(rows, *keys):
    return {type(row.get(key)) for row in rows for key in keys} <= {int, float, type(None)}


def _column(rows, key, half, tag, meaning):
    """The cells of a column, with its heading first."""
    values, widths = ([row.get(k) for row in rows] for k in (key, half))
    if _are_numbers(rows, key):
        kind, cells = "number", _numbers(values, widths)
    else:
        longest = max(len(str(value)) for value in values)
        kind = "short" if longest <= 18 else "medium" if longest <= 40 else "long"
        cells = [
            ("", _NONE) if value is None else (escape(value), breakable(value, ",/")) for value in values
        ]
    label = escape(key.replace("_", " ").replace("/", " "))
    scope, title = ' scope="row"' if tag == "th" else "", f' title="{escape(meaning)}"' if meaning else ""
    return [
        f'<th scope="col" class="{kind}"><button type="button"{title}>{label}</button></th>',
        *(f'<{tag}{scope} class="{kind}" data-value="{value}">{cell}</{tag}>' for value, cell in cells),
    ]


def _numbers(values, widths):
    """(data-value, HTML) of every number.

    Half widths have the same width, so that the means are aligned: page.css adds the rest of the longest one,
    unseen.
    """
    typical = _decimals(values, widths)
    # A half width far below the typical one must not look like 0.
    decimals = [max(typical, -_exponent(w)) if 1e-6 < (w or 0) < 1 else typical for w in widths]
    halves = ["" if w is None else f"± {_number(w, d)}" for w, d in zip(widths, decimals, strict=True)]
    longest = max(halves, key=len)
    for value, digits, half in zip(values, decimals, halves, strict=True):
        text = _NONE if value is None else _number(value, digits)
        if longest:
            text += f' <span class="half" data-rest="{longest[len(half) :]}">{half}</span>'
        yield "" if value is None or math.isnan(value) else json.dumps(value), text


def _decimals(values, widths):
    """Two digits of the typical half width, else four of the typical number; never more than were given."""
    sizes, halves = ([abs(n) for n in numbers if n and math.isfinite(n)] for numbers in (values, widths))
    if not sizes + halves:
        return 0
    wanted = 1 - _exponent(statistics.median(halves)) if halves else 3 - _exponent(statistics.median(sizes))
    given = max(len(f"{Decimal(str(size)).normalize():f}".partition(".")[2]) for size in sizes + halves)
    return max(min(wanted, given), 0)


def _exponent(size):
    return math.floor(math.log10(size))


def _number(value, decimals):
    fits = decimals <= 6 and abs(value) < 1e12
    text = f"{value:z,.{decimals}f}" if fits else f"{value:.3g}"
    return text.replace("-", "\N{MINUS SIGN}")
