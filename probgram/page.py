"""A page that needs no other file and no network, and is not allowed any: style and script lie inside it.

The page's own policy (Content-Security-Policy) lets exactly this style and this script in, by their hashes, and
images that lie in the page; nothing can be fetched or sent.
"""

import base64
import hashlib
import html
import json
from importlib import resources
from typing import Any


def document(title: str, body: str, style: str = "", script: str = "", data: Any = None) -> str:
    """Lay a page out.

    Args:
        title: of the window, plain text.
        body: HTML; whoever writes it escapes what comes from elsewhere.
        style: CSS beyond what all pages share.
        script: JavaScript, run after `body` is there.
        data: plain values for the script, as JSON in the element with the id "data"; None: none.
    """
    style = "\n" + (resources.files("probgram") / "page.css").read_text(encoding="utf-8") + style
    rules = [
        "default-src 'none'",
        f"style-src {_hash(style)}",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
    ]
    parts = [body]
    if data is not None:
        parts.append(f'<script type="application/json" id="data">{_json(data)}</script>')
    if script:
        script = "\n" + script
        rules.append(f"script-src {_hash(script)}")
        parts.append(f"<script>{script}</script>")
    return _PAGE.format(policy="; ".join(rules), title=html.escape(title), style=style, body="\n".join(parts))


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode('ascii')}'"


def _json(data: Any) -> str:
    """JSON in which no `</script>` and no `<!--` can occur."""
    return json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""
