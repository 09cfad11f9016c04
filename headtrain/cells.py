"""Names in a CSV file: no spreadsheet takes them for a formula, no terminal obeys them.

A cell that begins with =, +, -, @ or one of their full-width forms gets an apostrophe before it, as OWASP advises
against CSV injection; control characters are spelled out. Files of numbers and codes (JSON, Parquet) hold names as
they are.
"""

import re

FORMULA = re.compile("[=+\\-@\uff1d\uff0b\uff0d\uff20]")
"""How a text begins that a spreadsheet may take for a formula; tabs and line ends are spelled out anyway."""


def safe_cell(text: str) -> str:
    r"""A text as it may stand in a CSV file.

    >>> safe_cell("=cmd()"), safe_cell("cat"), safe_cell("a\tb")
    ("'=cmd()", 'cat', 'a\\tb')
    """
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return f"'{shown}" if FORMULA.match(shown) else shown
