"""What the site has besides docs/: the texts and files of the project that its pages link to, and MathJax.

A line that is nothing but a link to a Markdown file outside of docs/, or to a section of it, is replaced by that text
without its heading; so README.md and the tables are not copied. Any other file that is linked to is published under its
path in the project, as a page where it is Markdown. Formulas are drawn by MathJax, which the site carries.
"""

import posixpath
import re
from importlib.util import find_spec
from pathlib import Path

from markdown.extensions.toc import slugify
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
MATHJAX = "tex-svg.js"  # draws with paths, and needs no font
LINK = re.compile(
    r"^\[[^\]]+\]\((?P<text>\.\./[\w./-]+\.md)(?:#(?P<section>[\w-]+))?\)$"  # alone in its line
    r"|\]\((?P<file>[\w./-]+)(?=[#)])",
    re.MULTILINE,
)


def on_files(files, config):
    """Adds what the pages and README.md link to, and MathJax."""
    linked = {MATHJAX: Path(find_spec("mathjax").origin).parent / "static" / "mathjax" / "es5" / MATHJAX}
    for source in [ROOT / "README.md", *(Path(page.abs_src_path) for page in files.documentation_pages())]:
        for link in LINK.finditer(source.read_text(encoding="utf-8")):
            path = _path(link["file"] or "", _project(source))
            if (ROOT / path).is_file():  # mkdocs itself warns of one that is not there
                linked[_uri(path)] = ROOT / path
    for uri, path in linked.items():
        if files.get_file_from_path(uri) is None:
            files.append(File.generated(config, uri, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown, page, **_):
    return expanded(markdown, _project(page.file.abs_src_path), page.file.src_uri)


def on_page_content(html, page, files, **_):
    if "arithmatex" not in html:
        return html
    script = files.get_file_from_path(MATHJAX).url_relative_to(page.file)
    return f'{html}\n<script src="{script}" defer></script>'


def expanded(markdown: str, source: str, page: str) -> str:
    """The text of the project's file `source` as the site's `page` shows it: with what it embeds, links turned."""

    def replace(link):
        if link["text"]:
            path = _path(link["text"], source)
            return expanded(_section(path, link["section"]), path, page)
        return "](" + posixpath.relpath(_uri(_path(link["file"], source)), posixpath.dirname(page) or ".")

    return LINK.sub(replace, markdown)


def _section(path: str, section) -> str:
    """A Markdown file, or what stands under one of its headings of the first two levels; other headings sink by one."""
    text = (ROOT / path).read_text(encoding="utf-8")
    _, *parts = re.split(r"^(?:\A#|##) (.+)\n", text, flags=re.MULTILINE)
    sections = {slugify(title, "-"): body for title, body in zip(parts[::2], parts[1::2])}
    if section is None:
        return re.sub("^##", "###", text.split("\n", 1)[1], flags=re.MULTILINE)
    if section not in sections:
        raise PluginError(f"{path}#{section}: there is no such section; there are {', '.join(sections)}")
    return sections[section]


def _project(path) -> str:
    return Path(path).relative_to(ROOT).as_posix()


def _path(link: str, source: str) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), link))


def _uri(path: str) -> str:
    """Where a file of the project is on the site."""
    return path[len("docs/") :] if path.startswith("docs/") else path
