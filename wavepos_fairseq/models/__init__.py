"""fairseq's model only: importing this package registers `transformer_lm_wavelet`, its architectures and our task."""

from .. import tasks  # noqa: F401
from . import transformer_lm_wavelet  # noqa: F401
