"""Fused GPU kernels; importing them needs no GPU and no Triton."""
