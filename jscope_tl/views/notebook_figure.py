"""A matplotlib figure that shows itself in a notebook."""

from io import BytesIO

from matplotlib.figure import Figure


class NotebookFigure(Figure):
    """A figure that notebooks show as a picture also in the cell that loads pyplot, where they do not know figures yet."""

    def _repr_png_(self) -> bytes:
        content = BytesIO()
        self.savefig(content, format="png", bbox_inches="tight")
        return content.getvalue()
