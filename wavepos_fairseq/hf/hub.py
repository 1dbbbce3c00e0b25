"""Data sets of Hugging Face's hub, which its own library downloads, resumes and keeps in its cache."""

from pathlib import Path

from huggingface_hub import snapshot_download

from ..common.errors import first_line


def dataset_folder(name: str, pattern: str) -> Path:
    """A folder with the data set's files whose names match; its own name is the commit. ValueError where that fails."""
    try:
        return Path(snapshot_download(name, repo_type="dataset", allow_patterns=pattern))
    except Exception as error:  # of many types, by what is in the way
        raise ValueError(f"{name} cannot be had from the hub ({first_line(_cause(error))})") from error


def _cause(error: BaseException) -> BaseException:
    """What began it: the connection's error or the server's answer, without the advice of the hub's library."""
    return _cause(error.__cause__) if error.__cause__ else error
