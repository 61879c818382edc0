"""Makes the stage `probe` known in every Python process that has this folder on PYTHONPATH."""

from contextlib import suppress
from pathlib import Path

# Other environments, which tests create, need not have the package.
with suppress(ModuleNotFoundError):
    import alignment_core.stages

    alignment_core.stages.__path__.append(str(Path(__file__).resolve().parents[3] / "stages" / "probes"))
