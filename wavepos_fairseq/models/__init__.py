"""The fairseq side: importing this package registers `transformer_lm_wavelet` and its architectures."""

from . import transformer_lm_wavelet  # noqa: F401
