"""The pipeline's stages, artifact store, models and losses, without Prefect."""

import sys

if sys.platform == "win32":  # file locks, forks and bitsandbytes' kernels are those of Linux
    raise ImportError(
        "Alignment Flows does not run on Windows itself. Install WSL 2 with the command `wsl --install`, open its "
        "terminal, and install Alignment Flows there as on Linux. An NVIDIA GPU is available there, too"
    )
