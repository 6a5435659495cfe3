"""A reader of docstrings for the reference: what stands beside a field as a comment is documentation, too.

Settings and states are dataclasses and NamedTuples with a comment on each line, or a section "Fields". Both become
the section "Attributes" of the class, with the fields' types.
"""

import io
import re
import tokenize
from typing import Any

import griffe


class FieldComments(griffe.Extension):
    """Adds the comments beside the fields of a class to its docstring."""

    def on_class_members(self, *, node: Any, cls: griffe.Class, agent: Any, **kwargs: Any) -> None:
        """Called for each class, once its fields are known."""
        if cls.docstring is None:
            return
        text = re.sub(r"^Fields:$", "Attributes:", cls.docstring.value, flags=re.MULTILINE)
        if not re.search(r"^Attributes:$", text, re.MULTILINE):
            fields = {name: _comment(field) for name, field in cls.attributes.items()}
            lines = [f"    {name}: {comment}" for name, comment in fields.items() if comment]
            if lines:
                text = "\n".join([text.rstrip(), "", "Attributes:", *lines])
        cls.docstring.value = text


def _comment(field: griffe.Attribute) -> str:
    """The comment behind a field, "" where there is none."""
    tokens = tokenize.generate_tokens(io.StringIO("\n".join(field.lines).strip() + "\n").readline)
    return next((token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT), "")
