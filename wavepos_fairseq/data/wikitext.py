"""WikiText (Merity et al., 2017): downloaded as a zip archive or as parquet files, or the user's own copy.

A download is used only if it is the published text: an archive has the right MD5; text from parquet files has the
right counts and, where it is known, the right SHA-256. The text is tokenised already.
"""

import dataclasses
import urllib.parse
from pathlib import Path
from typing import Dict, List, Sequence

from ..plugin.streams import SPLITS, Counts
from .archives import check_parquet, unpack_parquet, unpack_zip
from .corpus import Corpus, DataError, Source, files_in, say
from .download import DownloadError, fetch_file, file_digest, is_url
from .lock import one_at_a_time

MIRRORS = ("https://wikitext.smerity.com/", "https://s3.amazonaws.com/research.metamind.io/wikitext/")
"""Where the archives are. The second one, their first home, has answered 403 since 2024."""
HUB = "https://huggingface.co/datasets/Salesforce/wikitext/resolve/main/"
"""Where the same lines are in parquet files. It is tried last: it gives no checksum of the text."""


@dataclasses.dataclass(frozen=True)
class WikiText(Corpus):
    """A WikiText corpus and what identifies it.

    md5: of the zip archive. tokens, types: as in `Counts`. train_files: the number of the hub's parquet files for
    train. sha256: of wiki.{split}.tokens, where it is known.
    """

    name: str
    md5: str
    train_lines: int
    tokens: Dict[str, int]
    types: int
    train_files: int
    sha256: Dict[str, str]

    min_count = 0

    def find_text(self, source: Source, option: str) -> Dict[str, Path]:
        if source is None or is_url(source) or Path(source).is_file():
            return {}
        return files_in(source, self.name, "wiki.{}.tokens", option)

    def write_tokens(self, source: Source, files: Dict[str, Path], folder: Path, downloads: Path) -> str:
        if source is None or is_url(source):
            with one_at_a_time(downloads / f".{self.name}.lock"):  # its words and its characters are one download
                if source is None:
                    return self.download(folder, downloads)
                unpack_zip(self.fetch_zip([str(source)], downloads), folder)
                return without_secrets(str(source))
        for split, path in files.items():
            (folder / f"{split}.tokens").symlink_to(path.resolve())
        if not files:
            try:
                self.check_zip(Path(source))
            except DataError as error:
                raise DataError(
                    f"{source} is not the archive {self.name}-v1.zip: {error}. "
                    "Of a folder with the unpacked wiki.*.tokens only the counts are checked"
                ) from error
            unpack_zip(Path(source), folder)
        return Path(source).resolve().name

    def check(self, data_bin: Path, counts: Counts) -> None:
        check_counts(self.name, counts)
        say(f"{self.name}: all counts are right")

    def download(self, folder: Path, downloads: Path) -> str:
        """Write the tokens from the first place that has them; DownloadError with all reasons where none has."""
        archive = f"{self.name}-v1.zip"
        try:
            unpack_zip(self.fetch_zip([f"{mirror}{archive}" for mirror in MIRRORS], downloads), folder)
            return archive
        except DownloadError as error:
            reasons = [*error.reasons]
        try:
            self.write_from_hub(folder, downloads)
            return f"Salesforce/wikitext, {self.name}-v1"
        except DownloadError as error:
            reasons += error.reasons
        except DataError as error:
            reasons.append(f"{HUB}{self.name}-v1: {error}")
        raise DownloadError(self.name, self.instead, reasons)

    @property
    def instead(self) -> str:
        return f"scripts/prepare_data.sh {self.name} --from takes a local copy"

    def fetch_zip(self, urls: Sequence[str], downloads: Path) -> Path:
        """Download the zip archive to ``downloads`` from the first of ``urls`` that has it."""
        return fetch_file(downloads / f"{self.name}.zip", urls, self.check_zip, self.instead)

    def check_zip(self, path: Path) -> None:
        found = file_digest(path, "md5")
        if found != self.md5:
            raise DataError(f"wrong checksum: expected MD5 {self.md5}, found {found}")

    def write_from_hub(self, folder: Path, downloads: Path) -> None:
        """Write the tokens from the hub's parquet files; these are removed where they hold another text."""
        files: Dict[str, List[Path]] = {split: [] for split in SPLITS}
        for split, hub_split, shards in (
            ("train", "train", self.train_files),
            ("valid", "validation", 1),
            ("test", "test", 1),
        ):
            for shard in range(shards):
                name = f"{hub_split}-{shard:05}-of-{shards:05}.parquet"
                file, url = downloads / f"{self.name}-{name}", f"{HUB}{self.name}-v1/{name}"
                files[split].append(fetch_file(file, [url], check_parquet, self.instead, by_length=True))
        say("reading the parquet files")
        try:
            unpack_parquet(files, folder)
            self.verify(folder)
        except DataError:
            for file in sum(files.values(), []):
                file.unlink()
            raise

    def verify(self, folder: Path) -> None:
        """Raise DataError unless ``folder/{split}.tokens`` are the published text, as far as that is known."""
        for split, expected in self.sha256.items():
            found = file_digest(folder / f"{split}.tokens", "sha256")
            if found != expected:
                raise DataError(f"wrong checksum of wiki.{split}.tokens: expected SHA-256 {expected}, found {found}")
        check_counts(self.name, count_text(folder))


# Types as Merity et al. count them. fairseq's "Dictionary: 33280 types" for WikiText-2 adds <s> and <pad>, and where
# that is not a multiple of 8 (267,737 for WikiText-103) it also adds words that never occur (267,744).
# The SHA-256 of the original wiki.train.tokens is not known here.
WIKITEXT = {
    "wikitext-103": WikiText(
        name="wikitext-103",
        md5="9ddaacaf6af0710eda8c456decff7832",
        train_lines=1_801_350,
        tokens={"train": 103_227_021, "valid": 217_646, "test": 245_569},
        types=267_735,
        train_files=2,
        sha256={
            "valid": "9aee9f52d6e77de6c7751fc5e7c44287db3ec0eaf15477098acc6b93c1c4250b",
            "test": "56db52eb157b1ab5c89646eef70510c1eca6e12a3bfdb99f0d6b05b4eacb75b9",
        },
    ),
    "wikitext-2": WikiText(
        name="wikitext-2",
        md5="542ccefacc6c27f945fb54453812b3cd",
        train_lines=36_718,
        tokens={"train": 2_088_628, "valid": 217_646, "test": 245_569},
        types=33_278,
        train_files=1,
        sha256={
            "valid": "f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8",
            "test": "d790b833ef8cf03a90db7bf1271b7520b83c45ce07ba3c1a9699df81e239eca0",
        },
    ),
}


def check_counts(name: str, counts: Counts) -> None:
    """Raise DataError unless the counts are those of the WikiText corpus ``name``."""
    expected = WIKITEXT[name]
    pairs = {f"{split} tokens": (counts.tokens[split], expected.tokens[split]) for split in SPLITS}
    pairs["train lines"] = (counts.lines["train"], expected.train_lines)
    pairs["types"] = (counts.types, expected.types)
    wrong = [f"{what}: expected {want:,}, found {found:,}" for what, (found, want) in pairs.items() if found != want]
    if wrong:
        raise DataError(f"this is not {name} ({'; '.join(wrong)}); the name for text of your own is text")


def count_text(folder: Path) -> Counts:
    """The counts that the data-bin of ``folder/{split}.tokens`` will have."""
    lines, tokens, words = {}, {}, {"<unk>", "</s>"}
    for split in SPLITS:
        lines[split] = tokens[split] = 0
        with open(folder / f"{split}.tokens", encoding="utf-8") as text:
            for line in text:
                found = line.split()
                lines[split] += 1
                tokens[split] += len(found) + 1
                if split == "train":
                    words.update(found)
    return Counts(lines, tokens, types=len(words))


def without_secrets(url: str) -> str:
    """The URL without the credentials and the query, which may be secret."""
    parts = urllib.parse.urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
