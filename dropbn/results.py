"""A result: rows that print as a table and can be written as JSON and CSV."""

import csv
import dataclasses
import io
import json
import os

import rich.box
import rich.console
import rich.table
import rich.text

from dropbn import writers


@dataclasses.dataclass(frozen=True)
class Result:
    """A table of numbers.

    Attributes:
      rows: a dict for each row, all with the same keys.
      title: the line above the printed table.
    """

    rows: list[dict]
    title: str = ""

    def without(self, *keys: str) -> "Result":
        """The result without some of its columns."""
        return Result([{key: row[key] for key in row if key not in keys} for row in self.rows], self.title)

    def to_json(self, path: str | os.PathLike | None = None) -> str:
        """The rows as JSON, also written to `path` if given.

        Raises:
          DropbnError: the file cannot be written.
        """
        return _write(json.dumps(self.rows, indent=1), path)

    def to_csv(self, path: str | os.PathLike | None = None) -> str:
        """The rows as CSV with a header line, also written to `path` if given.

        Raises:
          DropbnError: the file cannot be written.
        """
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(self.rows[0]) if self.rows else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        return _write(text.getvalue(), path)

    def __rich__(self) -> rich.console.RenderableType:
        table = rich.table.Table(title=self.title, title_justify="left", box=rich.box.SIMPLE_HEAD)
        for key in self.rows[0] if self.rows else ():
            numeric = not isinstance(self.rows[0][key], str)
            table.add_column(key.replace("_", " "), justify="right" if numeric else "left", overflow="fold")
        for row in self.rows:
            table.add_row(*map(_cell, row.values()))
        return table


def _cell(value):
    if isinstance(value, str):
        return rich.text.Text(value)  # Rich would read brackets in a plain string as markup.
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}"


def _write(text, path):
    if path is not None:
        writers.replace(path, text)
    return text
