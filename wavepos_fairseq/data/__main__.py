"""``python -m wavepos_fairseq.data``: see `command`."""

import sys

from .command import main

sys.exit(main())
