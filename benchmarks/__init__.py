"""Time and memory of the layers, compared with what they replace: `python -m benchmarks`."""

import os

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # otherwise the profiler prints a line at every start
