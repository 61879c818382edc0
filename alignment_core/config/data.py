"""The sources of feedback and their ingestion."""

from __future__ import annotations

from pydantic import Field, model_validator

from alignment_core.config.base import Fraction, Name, Settings
from alignment_core.config.places import HUB, Place, is_reference, names_feedback_store


class SourceConfig(Settings):
    """One source of raw feedback: a file, folder, glob pattern, URL, Hub data set or feedback store."""

    path: Place
    """File, folder, glob pattern, fsspec URL, Hub data set (`hf://owner/name`), or feedback store (`.db` file or
    database URL)."""
    revision: str | None = None
    """Branch, tag or commit of a Hub data set. Resolved to a commit before anything is cached. Unset: the default
    branch."""
    subset: str | None = None
    """Configuration of a Hub data set. Needed only if the data set has several."""
    split: str = "train"
    """Split of a Hub data set, or of a folder that holds one: a saved DatasetDict, or parts like
    `train-00000-of-00001.parquet`."""
    format: str | None = None
    """Name of the record format. Unset: detected from the first records."""
    columns: dict[str, str] = Field(default_factory=dict)
    """For any table: maps standard columns (`prompt`, `completion`, `chosen`, `rejected`, `label`, …) to the file's
    columns."""
    keep: list[Name] = Field(default_factory=list)
    """Columns that evaluators see as the facts of a prompt, for example its right answer or its tests. The model does
    not see them, unless the format reads them as well."""
    threshold: float | None = None
    """Scalar ratings at or above this value count as thumbs up, lower ones as thumbs down. Unset: rows that need a
    threshold are quarantined."""
    max_pairs: int | None = Field(None, ge=1)
    """Maximum number of preference pairs from one ranking, widest score gaps first. Unset: all pairs (for SHP, 5 per
    post)."""
    desirable: list[str] = Field(default_factory=list)
    """Values of the label column that mean thumbs up. All other values mean thumbs down. Unset: common values such as
    true/false, 1/0 and 👍/👎 are recognized."""
    max_records: int | None = Field(None, ge=1)
    """Stop reading the source after this many records. Unset: read all."""
    weight: float = Field(1.0, gt=0, le=10_000)
    """Share of this source's rows to use. Values above 1 repeat rows."""
    votes_after: int = Field(0, ge=0)
    """Feedback store only: use only votes with a number above this."""
    votes_before: int | None = Field(None, ge=0)
    """Feedback store only: use only votes with a number up to this that were not superseded. Unset: no upper bound."""
    votes_upto: int | None = Field(None, ge=0)
    """Feedback store only: use the votes that were current when the vote with this number was cast. Unset: the votes
    that are current now."""

    @model_validator(mode="after")
    def _settings_of_this_kind_of_source(self) -> SourceConfig:
        if is_reference(self.path):
            return self
        if not self.path.startswith(HUB) and (self.revision is not None or self.subset is not None):
            name = "subset" if self.revision is None else "revision"
            raise ValueError(f"only a data set on the Hub ({HUB}owner/name) has a `{name}`, and {self.path} is none")
        if not names_feedback_store(self.path) and (self.votes_after, self.votes_before, self.votes_upto) != (
            0,
            None,
            None,
        ):
            raise ValueError(f"only a feedback store has votes, and {self.path} is none")
        return self


class DataConfig(Settings):
    """The feedback: one or more sources. A source serves every purpose that its records allow."""

    sources: list[SourceConfig] = Field(min_length=1)
    """Sources to read and mix."""
    held_out_fraction: float = Field(0.05, gt=0, lt=1)
    """Share of conversations held out from training, selected by a hash of the prompt."""
    max_records: int | None = Field(None, ge=1)
    """For a quick try: read at most this many records of all sources together, in equal shares. Unset: read all."""
    max_bad_fraction: Fraction = 0.05
    """Largest share of rows that may be quarantined. Ingestion fails above it. Rows that are too long do not count."""
    near_duplicates: float | None = Field(0.8, gt=0, le=1)
    """Jaccard similarity of word trigrams at or above which texts count as near-duplicates. Null: only exact
    duplicates are removed."""
