"""The site: `sphinx-build -W docs site`, after `pip install -r docs/requirements.txt`. It works offline."""

import pathlib
import re
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from dropbn import __version__

project = "dropbn"
copyright = "the dropbn developers"
release = __version__
extensions = [
    "myst_parser",
    *(f"sphinx.ext.{name}" for name in ("autodoc", "autosummary", "napoleon", "viewcode")),
]
exclude_patterns = ["requirements.txt"]
html_theme = "furo"
html_title = f"dropbn {__version__}"
html_copy_source = False
myst_heading_anchors = 3
autosummary_generate = True
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_typehints = "none"
default_role = "code"
napoleon_use_ivar = True
napoleon_use_rtype = False
# Mermaid's source is shown as it is. Links to what is no page are checked by tests/test_readme.py.
suppress_warnings = ["misc.highlighting_failure", "myst.xref_missing"]

_SECTIONS = "Args:", "Attributes:", "Raises:", "Returns:", "Yields:"  # Napoleon reads these.


def plain(app, what, name, obj, options, lines):
    """Docstrings are plain text: * and | mean themselves, a block behind a colon is a list or a listing."""
    found, before, around, is_list = [], "", None, False
    for line in lines:
        indent = len(line) - len(line.lstrip())
        if around is not None and line.strip() and indent <= around:
            found.append("")
            around = None
        if line.startswith("- ") and before.strip() and not before.startswith(("- ", "  ")):
            found.append("")
        is_listing = what == "module" and around is None and not before and indent >= 4 and found
        if is_listing and not found[-1].startswith("    ") and not _last(found).startswith("    "):
            found += ["::", ""]
        opens = before.endswith(":") and before.strip() not in _SECTIONS and line.strip()
        if around is None and opens and indent > len(before) - len(before.lstrip()):
            around, inside = len(before) - len(before.lstrip()), indent
            is_list = bool(re.match(r"\s*[\w, ]+: ", line))
            found[-1] += ":" * (not is_list)
            found.append("")
        if around is not None and is_list and indent == inside:
            line = f"{' ' * inside}- {line.lstrip()}"
        elif around is not None and is_list:
            line = f"{' ' * inside}  {line.lstrip()}".rstrip()
        is_code = what == "module" and indent >= 4
        is_code |= line.lstrip().startswith((">>>", "...")) or (around is not None and not is_list)
        found.append(line if is_code else _escaped(line))
        before = line
    lines[:] = found


def _last(lines):
    return next((line for line in reversed(lines) if line), "")


def _escaped(line):
    line = re.sub(r"(`[^`]+`)(?=\w)", r"\1\\ ", line)
    parts = re.split(r"(`[^`]*`)", line)
    parts[::2] = [
        re.sub(r"((?<![\w*])\*{1,2}(?=[a-z])|\|)", _behind_backslashes, part) for part in parts[::2]
    ]
    return "".join(parts)


def _behind_backslashes(found):
    return "".join("\\" + letter for letter in found[0])


def setup(app):
    app.connect("autodoc-process-docstring", plain, priority=100)  # before napoleon
