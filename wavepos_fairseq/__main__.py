"""The command `wavepos`: its first word chooses a step of an experiment, whose module reads the other words."""

import importlib
import signal
import sys
from typing import Optional, Sequence

from . import __version__

COMMANDS = {  # module whose `main` reads the words; words put before them; help
    "prepare": ("data.command", [], "prepare a corpus as a fairseq data-bin folder"),
    "train": ("lab.experiments", ["train"], "train one row of a table, or any options"),
    "evaluate": ("lab.experiments", ["evaluate"], "evaluate a trained row, or a model of transformers"),
    "reproduce": ("lab.experiments", ["reproduce"], "train and evaluate all rows of a table, then write the table"),
    "sweep": ("lab.experiments", ["sweep"], "train and evaluate a grid of wavelets, then write its table"),
    "status": ("lab.experiments", ["status"], "show the progress of the runs of a table or a sweep"),
    "longbench": ("lab.longbench", [], "score a Hugging Face model on LongBench, or compare two"),
    "figures": ("lab.figures.command", [], "draw figures of the formulas or of trained models"),
    "claims": ("lab.claims", [], "check the paper's statements against a preset's tables"),
    "report": ("lab.report", [], "write a preset's results as one HTML page"),
}

HELP = "\n".join(
    [
        "usage: wavepos COMMAND [ARGUMENT ...]",
        "",
        "Wavelet-based positional representation for long context (Oka et al., ICLR 2025).",
        "",
        *(f"  {name:<11}{line}" for name, (_, _, line) in COMMANDS.items()),
        "",
        "wavepos COMMAND --help shows a command's arguments, wavepos --version the version.",
    ]
)


def main(arguments: Optional[Sequence[str]] = None) -> int:
    name, *words = [*(sys.argv[1:] if arguments is None else arguments), ""]
    if name in ("-h", "--help"):
        print(HELP)
        return 0
    if name == "--version":
        print(__version__)
        return 0
    if name not in COMMANDS:
        said = f"{name!r} is unknown" if name else "a command is missing"
        print(f"error: {said}; accepted are {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    module, first, _ = COMMANDS[name]
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends it as Ctrl-C does
    try:
        return importlib.import_module(f".{module}", __package__).main([*first, *words[:-1]])
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
