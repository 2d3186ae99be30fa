"""One entry per layer of the library; every module of this package holds those of one group as `CASES`."""

from importlib import import_module
from pkgutil import iter_modules

from case import Case

CASES: dict[str, Case] = {}
for module in sorted(info.name for info in iter_modules(__path__)):
    found: dict[str, Case] = import_module(f"{__name__}.{module}").CASES
    if repeated := sorted(CASES.keys() & found.keys()):
        raise ValueError(f"names of cases must differ; {module} repeats {', '.join(repeated)}")
    CASES |= found
