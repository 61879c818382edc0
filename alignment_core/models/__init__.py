"""The frozen base model and everything that runs on it. Importing this package does not import torch."""

import logging

# bitsandbytes warns about an optional kernel at import, and about int8's cast to float16 on every call of every layer.
# It logs from its first import on, so its loggers are configured before any module of this package imports it.
for _logger in ("bitsandbytes.backends.cpu.ops", "bitsandbytes.autograd._functions"):
    logging.getLogger(_logger).setLevel(logging.ERROR)
