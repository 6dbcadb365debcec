"""Text out of HTML, by the standard library's parser."""

from html.parser import HTMLParser

from unitsphere.data.preparation.step import TextStep

# Elements of https://html.spec.whatwg.org, and old ones still met. `List<int>` has a tag of none of them: it is text.
INLINE = frozenset([
    "a", "abbr", "acronym", "b", "bdi", "bdo", "big", "cite", "code", "data", "del", "dfn", "em", "font", "i", "ins",
    "kbd", "mark", "q", "rp", "rt", "ruby", "s", "samp", "small", "span", "strike", "strong", "sub", "sup", "time",
    "tt", "u", "var", "wbr",
])  # fmt: skip
SILENT = frozenset([
    "button", "head", "iframe", "math", "noscript", "object", "script", "select", "style", "svg", "template",
])  # fmt: skip
BOILERPLATE = frozenset([
    "aside", "dialog", "footer", "form", "header", "menu", "nav",
])  # fmt: skip
BLOCK = frozenset([
    "address", "area", "article", "audio", "base", "blockquote", "body", "br", "canvas", "caption", "center", "col",
    "colgroup", "datalist", "dd", "details", "div", "dl", "dt", "embed", "fieldset", "figcaption", "figure", "frame",
    "frameset", "h1", "h2", "h3", "h4", "h5", "h6", "hgroup", "hr", "html", "img", "input", "label", "legend", "li",
    "link", "main", "map", "meta", "meter", "ol", "optgroup", "option", "output", "p", "param", "picture", "pre",
    "progress", "search", "section", "slot", "source", "summary", "table", "tbody", "td", "textarea", "tfoot", "th",
    "thead", "title", "tr", "track", "ul", "video",
])  # fmt: skip


class Html(TextStep):
    """Tags go, entities become their characters, and scripts, styles and other parts that nobody reads are dropped.

    A text without `<` or `&` is left as it is, and so is a `<` that begins no HTML tag: `a < b`, `List<int>`,
    `if (a<b && c>d)`. A space remains of a tag that divides lines (`<p>`, `<br>`, `<td>`), and nothing of one inside a
    line (`<b>`); white space is otherwise left to the step `whitespace`. What follows a part that never ends stays,
    and so does its tag, as in `How do I style a <select> element?`.

    Args:
        boilerplate: Also drop navigation, page headers and footers, asides and forms.
    """

    def __init__(self, boilerplate: bool = True):
        self.silent = SILENT | BOILERPLATE if boilerplate else SILENT

    def text(self, text: str) -> str:
        if "<" not in text and "&" not in text:
            return text
        reader = _Reader(self.silent)
        reader.feed(text)
        reader.close()
        return "".join(reader.parts).strip()


class _Reader(HTMLParser):
    def __init__(self, silent: frozenset[str]):
        super().__init__()
        self.silent = silent
        self.parts: list[str] = []
        self.inside: list[tuple[str, int]] = []  # silent elements that are open, and how many parts came before each

    def close(self) -> None:
        super().close()
        while self.cdata_elem is not None and self.rawdata:  # a script or style that never ends: the rest is text too
            self.clear_cdata_mode()
            super().close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in self.silent:
            self.inside.append((tag, len(self.parts)))
            self.parts.append(self.get_starttag_text() or "")  # dropped with the rest where the element ends
        else:
            self.handle_startendtag(tag, attrs)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        bare = tag in INLINE and attrs and all(value is None for _, value in attrs)  # no tag, but `a<b && c>d`
        self._tag("" if bare else tag, self.get_starttag_text() or "")

    def handle_endtag(self, tag: str) -> None:
        at = next((i for i, (opened, _) in enumerate(self.inside) if opened == tag), None)
        if at is not None:
            del self.parts[self.inside[at][1] :], self.inside[at:]
        self._tag(tag, f"</{tag}>")

    def handle_data(self, data: str) -> None:
        self.parts.append(data)

    def parse_marked_section(self, i: int, report: bool = True) -> int:
        return self.parse_bogus_comment(i, report)  # the parser's own raises where `<![` is no section

    def _tag(self, tag: str, written: str) -> None:
        if tag not in INLINE:
            self.handle_data(" " if tag in SILENT | BOILERPLATE | BLOCK else written)
