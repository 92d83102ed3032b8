"""Our docstrings for the reference: they have descriptions where numpydoc has types, which signatures say already."""

import re

import griffe

_ENTRY = re.compile(r"^([*\w][*\w, ]*) : (?=\S)", re.MULTILINE)


class DescriptionsOnTheirOwnLine(griffe.Extension):
    """`name : description` becomes `name`, and the description below it."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        """Rewrite the docstring of anything that is loaded."""
        if obj.docstring is not None:
            obj.docstring.value = _ENTRY.sub(r"\1\n    ", obj.docstring.value)
