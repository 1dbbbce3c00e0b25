"""fairseq's task only: importing this package registers `language_modeling_wavepos`."""

from . import language_modeling_wavepos  # noqa: F401
