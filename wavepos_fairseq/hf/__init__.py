"""Hugging Face's Llama with any position representation: `WaveletLlamaForCausalLM`.

The rest of the model is transformers' own; see `llama`. Needs the extra hf and Python 3.11 or newer.
"""

try:
    from .llama import WaveletLlamaConfig, WaveletLlamaForCausalLM, WaveletLlamaModel
except ModuleNotFoundError as error:
    raise ImportError(
        f'this needs {error.name}: pip install "wavepos-fairseq[hf]", with Python 3.11 or newer'
    ) from error
except OSError as error:  # transformers imports torchaudio where that is installed
    raise ImportError(
        f"transformers cannot be imported ({error}); if torchaudio does not fit this PyTorch, nothing here needs it: "
        "pip uninstall torchaudio"
    ) from error

__all__ = ["WaveletLlamaConfig", "WaveletLlamaForCausalLM", "WaveletLlamaModel"]
