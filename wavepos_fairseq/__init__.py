"""Wavelet-based positional representation for long context (Oka et al., ICLR 2025), as a fairseq plugin.

The attention and the position representations (`attention`, `positions`, `wavelets`) need PyTorch and PyWavelets only;
`models` registers them with fairseq and is imported by ``fairseq-train --user-dir wavepos_fairseq``.
"""

__version__ = "0.2.3"  # another one whenever the digits of a training change: no run goes on from another version's
