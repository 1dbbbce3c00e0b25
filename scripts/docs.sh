#!/usr/bin/env bash
# Builds the documentation as a site that needs no network: site/index.html.
#
#   scripts/docs.sh [--site-dir DIR]      (default: site)
#
# Any warning fails the build, a broken link for example. The pages can be read as files; only their search needs a
# server (python -m http.server -d site).
. "$(dirname "$(readlink -f "$0")")/env.sh"

export NO_MKDOCS_2_WARNING=1 # the theme warns about a later mkdocs than the pinned one
exec "$PYTHON" -m mkdocs build --strict --config-file "$ROOT/mkdocs.yml" "$@"
