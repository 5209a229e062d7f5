"""Reports: views and figures as pure data, and thin renderers of them.

A `View` answers one question; `figures` are values that any renderer can draw. `page` makes static
pages of views that need no network, `render` turns figures into SVG and PNG. What a view says is
built beside them, one module a view (`gemm_view`, `llm_view`, `study_page` ...), on the same
functions as the command line. Nothing here measures or fits.
"""

from .figures import Axis, Figure, Heat, Panel, Series
from .view import Fact, Facts, Heading, Rows, View, Words

__all__ = ["Axis", "Fact", "Facts", "Figure", "Heading", "Heat", "Panel", "Rows", "Series", "View",
           "Words"]  # fmt: skip
