"""The site's files that are not in docs/: what the pages link to, and MathJax. The pages' text is as it is on GitHub.

A file of the project that a page links to is published under its path in the project, as a page where it is Markdown;
links follow it. Formulas are drawn by MathJax, which the site carries.
"""

import posixpath
import re
from importlib.util import find_spec
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
MATHJAX = "tex-svg.js"  # draws with paths, and needs no font
LINK = re.compile(r"\]\(([\w./+-]+)(?=[#)])")  # to a file, at the end of a link or an image


def on_files(files, config):
    """Adds what the pages link to, and what is linked to there, and MathJax."""
    linked = {MATHJAX: Path(find_spec("mathjax").origin).parent / "static" / "mathjax" / "es5" / MATHJAX}
    sources = [Path(page.abs_src_path) for page in files.documentation_pages()]
    for source in sources:  # which grows
        for link in LINK.findall(source.read_text(encoding="utf-8")):
            path = _path(link, _project(source))
            if (ROOT / path).is_file() and _uri(path) not in linked:  # mkdocs itself warns of one that is not there
                linked[_uri(path)] = ROOT / path
                if path.endswith(".md") and ROOT / path not in sources:
                    sources.append(ROOT / path)
    for uri, path in linked.items():
        if files.get_file_from_path(uri) is None:
            files.append(File.generated(config, uri, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown, page, **_):
    source, folder = _project(page.file.abs_src_path), posixpath.dirname(page.file.src_uri) or "."
    return LINK.sub(lambda link: "](" + posixpath.relpath(_uri(_path(link[1], source)), folder), markdown)


def on_page_content(html, page, files, **_):
    if "arithmatex" not in html:
        return html
    script = files.get_file_from_path(MATHJAX).url_relative_to(page.file)
    return f'{html}\n<script src="{script}" defer></script>'


def _project(path) -> str:
    return Path(path).relative_to(ROOT).as_posix()


def _path(link: str, source: str) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), link))


def _uri(path: str) -> str:
    """Where a file of the project is on the site."""
    return path[len("docs/") :] if path.startswith("docs/") else path
