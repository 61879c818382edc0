"""The frozen base and what runs on it. Importing this package loads no torch."""

import logging

# bitsandbytes warns of an optional kernel at import, and of int8's cast to float16 on every call of every layer. Its
# loggers exist from its first import on, so they are told before any module of this package imports it.
for _logger in ("bitsandbytes.backends.cpu.ops", "bitsandbytes.autograd._functions"):
    logging.getLogger(_logger).setLevel(logging.ERROR)
