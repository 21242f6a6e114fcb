"""HTML pages of samples that load nothing from elsewhere."""

import html
from collections.abc import Sequence

SHOWN = 20
STYLE = """
body { font: 16px/1.5 Georgia, serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1, h2, th, .score { font-family: system-ui, sans-serif; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin: 2.5rem 0 .5rem; }
p.prompt { background: #f4f4f0; padding: .6rem .9rem; margin: .4rem 0; }
.gap { color: #b03a2e; font-weight: bold; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .3rem .6rem; border-top: 1px solid #ddd; }
th { font-size: .8rem; font-weight: normal; white-space: nowrap; color: #555; width: 1%; }
tr.gold td { background: #fdf6dd; }
td.score { font-size: .8rem; color: #777; white-space: nowrap; width: 1%; }
"""


def shown(text: str) -> str:
    """Text for HTML, on one line; characters that cannot be printed show as the replacement character."""
    line = " ".join(text.split())
    return html.escape("".join(letter if letter.isprintable() else "\ufffd" for letter in line))


def spread(indices: Sequence[int]) -> list[int]:
    """Twenty of them (SHOWN), spread evenly over those there are."""
    return list(indices[:: max(1, len(indices) // SHOWN)][:SHOWN])


def html_page(title: str, heading: str, introduction: str, body: str, style: str = STYLE) -> str:
    """A page that loads nothing from elsewhere. title, heading, introduction: plain text."""
    title, heading, introduction = map(html.escape, (title, heading, introduction))
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}</title>\n'
        f"<style>{style}</style>\n</head>\n<body>\n<h1>{heading}</h1>\n<p>{introduction}</p>\n"
        f"{body}</body>\n</html>\n"
    )
