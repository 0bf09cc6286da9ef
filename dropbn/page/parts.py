"""The parts of a page as HTML: figures, lists, listings, and the document around them.

Everything that a workdir holds is data. What is not `Html` is escaped, whatever type it has.
"""

import base64
import hashlib
import html
import re
from collections.abc import Iterable
from importlib import resources
from typing import Any

from dropbn import __version__


class Html(str):
    """Text that is HTML already."""


def escape(value: Any) -> Html:
    """A value as HTML: what it says, unless it is HTML already."""
    return value if isinstance(value, Html) else Html(html.escape(str(value)))


def document(title: str, kind: str, sections: dict[str, str]) -> str:
    """The page with these sections (heading -> HTML); empty ones are left out."""
    body = "\n".join(
        f"<section>\n<h2>{heading}</h2>\n{inner}</section>" for heading, inner in sections.items() if inner
    )
    files = resources.files("dropbn.page")
    # Only what has these hashes is run or applied, so that nothing that a workdir brings could be.
    css, js = ("\n" + files.joinpath(name).read_text("utf-8") for name in ("page.css", "page.js"))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src '{_hash(css)}'; script-src '{_hash(js)}';
  base-uri 'none'; form-action 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<link rel="icon" href="data:,">
<style>{css}</style>
</head>
<body>
<main>
<header>
<p class="kind">{kind}</p>
<h1>{escape(title)}</h1>
</header>
{body}
<footer>Made by dropbn {__version__}.</footer>
</main>
<script>{js}</script>
</body>
</html>
"""


def _hash(text):
    """How a content policy names an inline script or style."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def definitions(terms: dict[str, Any]) -> str:
    """A list of terms with their values; terms with an empty one are left out."""
    pairs = "\n".join(
        f"<dt>{escape(term)}</dt><dd>{text}</dd>" for term, value in terms.items() if (text := escape(value))
    )
    return f"<dl>\n{pairs}\n</dl>\n"


def counts(numbers: dict[str, Any]) -> str:
    """Words, each with its number in large digits."""
    items = "\n".join(
        f'<li><b data-value="{escape(words)}">{escape(number)}</b> <span>{escape(words)}</span></li>'
        for words, number in numbers.items()
    )
    return f'<ul class="counts">\n{items}\n</ul>\n'


def figures(captions: dict[str, str], images: dict[str, bytes | None]) -> str:
    """Numbered figures by file, with their captions; a sentence replaces a figure that cannot be read."""
    files = enumerate(captions, 1)
    return "".join(figure(file, images.get(file), captions[file], f"Figure {i}. ") for i, file in files)


def figure(file: str, image: bytes | None, caption: str, number: str = "") -> str:
    """An SVG or PNG with its caption."""
    if image is None:
        return f"<p>{number}The file {code(file)} cannot be read. {escape(caption)}</p>\n"
    kind, data = "svg+xml" if file.endswith(".svg") else "png", base64.b64encode(image).decode()
    return f"""<figure>
<div class="plate"><img src="data:image/{kind};base64,{data}" alt="{number}{escape(caption)}"></div>
<figcaption><b>{number}</b>{escape(caption)}</figcaption>
</figure>
"""


def folded(summary: str, inner: str) -> str:
    """HTML that unfolds with a click on its summary."""
    return f"<details>\n<summary>{escape(summary)}</summary>\n{inner}</details>\n"


def listing(text: str) -> str:
    """A text with its line breaks."""
    return f'<pre class="scroll" tabindex="0">{escape(text)}</pre>\n'


def code(text: Any) -> Html:
    """Code that breaks between words but not at the hyphens of flags."""
    words = " ".join(f"<span>{breakable(word, ',/=')}</span>" for word in str(text).split(" "))
    return Html(f"<code>{words}</code>" if text else "")


def joined(values: Iterable[Any], separator: str = ", ") -> Html:
    """Values one after another."""
    return Html(separator.join(map(escape, values)))


def breakable(text: Any, behind: str) -> Html:
    """Text that may break after these characters."""
    return Html(re.sub(rf"([{behind}])(?=\S)", r"\1<wbr>", escape(text)))
