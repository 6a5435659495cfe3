"""A result as one HTML file that needs no other and no network: sentences, a picture inside, a table."""

import base64
import html
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from probgram.page import document

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def page(
    title: str,
    answer: str,
    sentences: Sequence[str],
    figure: "Figure",
    picture: str,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    notes: Sequence[str],
) -> str:
    """Lay a result out as HTML.

    Args:
        title: of the page.
        answer: what the result says, in a word.
        sentences: a paragraph each.
        figure: drawn as a PNG inside the page.
        picture: what it shows, in words.
        header: of the table.
        rows: of the table, as text.
        notes: under the table, a paragraph each.
    """
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=110)
    body = _BODY.format(
        title=html.escape(title),
        answer=html.escape(answer),
        sentences=_all("p", sentences),
        picture=html.escape(picture),
        png=base64.b64encode(drawn.getvalue()).decode(),
        header=_all("th", header),
        rows="".join(f"<tr>{_all('td', row)}</tr>\n" for row in rows),
        notes=_all("p", notes),
    )
    return document(title, body)


def _all(tag: str, texts: Sequence[str]) -> str:
    return "".join(f"<{tag}>{html.escape(text)}</{tag}>" for text in texts)


_BODY = """<h1>{title}</h1>
<p class="verdict">{answer}</p>
{sentences}
<img alt="{picture}" src="data:image/png;base64,{png}">
<div class="wide"><table>
<thead><tr>{header}</tr></thead>
<tbody>
{rows}</tbody>
</table></div>
<footer>{notes}</footer>"""
