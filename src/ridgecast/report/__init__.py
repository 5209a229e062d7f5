"""Reports: figures as pure data, thin renderers, self-contained static HTML.

`figures` are values that any renderer can draw, `render` turns them into SVG and PNG, `html` puts
text, tables and figures on one page that needs no network. What a report says is built beside
them, one module a report (`study_page`). Nothing here measures or fits.
"""

from .figures import Axis, Figure, Heat, Panel, Series
from .html import Page, Section

__all__ = ["Axis", "Figure", "Heat", "Page", "Panel", "Section", "Series"]
