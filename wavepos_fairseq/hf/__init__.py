"""Hugging Face's Llama with any position representation: `WaveletLlamaForCausalLM`.

The rest of the model is transformers' own; see `llama`. Needs the extra hf and Python 3.11 or newer.
"""

try:
    import transformers.modeling_utils  # noqa: F401
except OSError as error:  # transformers loads torchaudio where that is installed, and dies with it
    raise ImportError(
        f"transformers cannot be imported: {error}; if it is torchaudio that does not load beside this PyTorch, "
        "nothing here needs it: pip uninstall torchaudio"
    ) from error
except ImportError as error:
    raise ImportError(f'this needs transformers ({error}): pip install "wavepos-fairseq[hf]"') from error

from .llama import WaveletLlamaConfig, WaveletLlamaForCausalLM, WaveletLlamaModel

__all__ = ["WaveletLlamaConfig", "WaveletLlamaForCausalLM", "WaveletLlamaModel"]
