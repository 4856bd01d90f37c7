"""Make the documentation read our ``Example:`` as the section that griffe calls ``Examples:``."""

from typing import Any

import griffe


class DocstringExamples(griffe.Extension):
    """Without it an example is drawn as prose, and its brackets are taken for links."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = obj.docstring.value.replace("\nExample:\n", "\nExamples:\n")
