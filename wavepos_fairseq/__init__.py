"""Wavelet-based positional representation for long context (Oka et al., ICLR 2025), as a fairseq plugin.

The attention and the position representations (`attention`, `positions`, `wavelets`) need PyTorch and PyWavelets only;
`models` registers them with fairseq and is imported by ``fairseq-train --user-dir wavepos_fairseq``.
"""

__version__ = "0.5.0"
DIGITS = "0.2.3"  # the version from which on trainings give today's digits: no run goes on with others
