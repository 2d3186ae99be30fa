"""Build the C++ kernel: `python -m stmi_layers.kernels.native`."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

from stmi_layers.kernels.native import SOURCES, library_path

# What torch calls the vectors of this processor, and what compilers call processors that have them. Named so, and not
# "native", the library also runs on another machine with such vectors, as behind a shared home folder.
PROCESSORS = {"AVX512": "x86-64-v4", "AVX2": "x86-64-v3"}


def build() -> Path:
    """Compile the kernel for this torch and this processor, and return where it is.

    Raises:
        RuntimeError: when there is no C++ compiler, when it fails, or the processor is too old.
    """
    capability = torch.backends.cpu.get_cpu_capability()
    if capability not in PROCESSORS:
        raise RuntimeError(
            f"the native kernel needs AVX2 or AVX512, and this processor has {capability}; tiles are faster here"
        )
    target = library_path()
    target.parent.mkdir(parents=True, exist_ok=True)
    # Renamed when complete, so that nobody loads half a library.
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        unfinished = Path(folder, target.name)
        command = [_compiler(), *_flags(), str(SOURCES / "attention.cpp"), "-o", str(unfinished), *_libraries()]
        compiled = subprocess.run(command, capture_output=True, text=True)
        if compiled.returncode != 0:
            rule = "the native kernel needs a compiler of C++20 with OpenMP: GCC 11 or Clang 14 or newer"
            raise RuntimeError(f"{rule}; CXX names another one. {' '.join(command)} said:\n{compiled.stderr}")
        os.replace(unfinished, target)
    return target


def _compiler() -> str:
    wanted = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    found = next((path for name in wanted if (path := shutil.which(name))), None)
    if found is None:
        cure = "install g++ (Debian, Ubuntu: apt install g++), or name a compiler in the environment variable CXX"
        raise RuntimeError(f"the native kernel needs a C++ compiler, and {', '.join(wanted)} is not there: {cure}")
    return found


def _flags() -> list[str]:
    processor = PROCESSORS[torch.backends.cpu.get_cpu_capability()]
    include = Path(torch.__file__).parent / "include"
    return [
        *("-std=c++20", "-O3", "-ffp-contract=fast", "-fPIC", "-shared", "-fopenmp", "-Wno-psabi"),
        f"-march={processor}",
        f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",
        *("-isystem", str(include), "-isystem", str(include / "torch" / "csrc" / "api" / "include")),
    ]


def _libraries() -> list[str]:
    return [f"-L{Path(torch.__file__).parent / 'lib'}", "-ltorch_cpu", "-lc10"]


if __name__ == "__main__":
    try:
        print(f"built {build()}")
    except RuntimeError as error:
        raise SystemExit(str(error)) from error
