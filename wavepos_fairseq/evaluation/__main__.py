"""``python -m wavepos_fairseq.evaluation``: see `plugin.evaluate`."""

import sys

from ..plugin.evaluate import main

sys.exit(main())
