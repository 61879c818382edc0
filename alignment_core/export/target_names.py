"""The names of the export targets."""

from typing import Literal

Target = Literal["merged", "adapter", "gguf", "ollama", "vllm", "hub"]
