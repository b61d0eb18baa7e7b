"""The parts of pages in docs/ that benchmarks write; everything around them is a person's."""

from __future__ import annotations

import re


def with_part(page: str, name: str, text: str) -> str:
    """`page` with `text` between `<!-- NAME: written by ... -->` and `<!-- NAME: end -->`, which it has once each.

    Raises:
        ValueError: the page has no such part, or two of them.
    """
    marks = re.compile(
        rf"(<!-- {re.escape(name)}: written by [^\n]* -->\n).*?(<!-- {re.escape(name)}: end -->)", re.DOTALL
    )
    if (found := len(marks.findall(page))) != 1:
        raise ValueError(
            f"The page has {found} parts '<!-- {name}: written by ... -->' to '<!-- {name}: end -->', not one."
        )
    return marks.sub(lambda part: f"{part[1]}\n{text}\n\n{part[2]}", page)
