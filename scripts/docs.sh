#!/usr/bin/env bash
# Builds the documentation as a site that loads nothing from a network: site/index.html.
#
#   scripts/docs.sh [--site-dir DIR]      (default: site)
#
# Any warning fails the build, for example a broken link or anchor. The pages can be opened as files, but their search
# needs a server (python -m http.server -d site).
. "$(dirname "$(readlink -f "$0")")/env.sh"

export NO_MKDOCS_2_WARNING=1 # the theme warns about a later mkdocs than the pinned one
exec "$PYTHON" -m mkdocs build --strict --config-file "$ROOT/mkdocs.yml" "$@"
