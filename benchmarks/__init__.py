"""Time and memory of the layers, against what they replace: `python -m benchmarks`."""

import os

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler announces each of its starts otherwise
