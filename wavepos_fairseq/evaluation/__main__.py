"""``python -m wavepos_fairseq.evaluation``: see `lab.evaluate`."""

import sys

from ..lab.evaluate import main

sys.exit(main())
