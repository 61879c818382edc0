"""The artifact store: immutable folders, addressed by a hash of everything that determines their content."""

from alignment_core.artifacts.alias_history import Change
from alignment_core.artifacts.aliases import CANDIDATE, PRODUCTION
from alignment_core.artifacts.digest import file_digest, tree_digest
from alignment_core.artifacts.key import key_of
from alignment_core.artifacts.manifest import Manifest
from alignment_core.artifacts.store import Artifact, ArtifactStore, Building

__all__ = [
    "CANDIDATE",
    "PRODUCTION",
    "Artifact",
    "ArtifactStore",
    "Building",
    "Change",
    "Manifest",
    "file_digest",
    "key_of",
    "tree_digest",
]
