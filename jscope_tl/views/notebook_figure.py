"""A matplotlib figure that notebooks display."""

from io import BytesIO

from matplotlib.figure import Figure


class NotebookFigure(Figure):
    """A figure that notebooks display even in the cell that first imports pyplot, before they register a formatter for figures."""

    def _repr_png_(self) -> bytes:
        content = BytesIO()
        self.savefig(content, format="png", bbox_inches="tight")
        return content.getvalue()
