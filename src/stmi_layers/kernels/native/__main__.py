"""Build the C++ kernel: `python -m stmi_layers.kernels.native`."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

from stmi_layers.kernels.native import SOURCES, library_path

# Vector instructions in the words of torch, and the processors that have them in the words of compilers. A library for
# such a processor, and not for this very one, also runs on another machine that shares the home folder.
PROCESSORS = {"AVX512": "x86-64-v4", "AVX2": "x86-64-v3"}


def build() -> Path:
    """Compile the kernel for this torch and this processor, and return where it is.

    Raises:
        RuntimeError: when there is no C++ compiler, when it fails, or when the processor has no AVX2.
    """
    capability = torch.backends.cpu.get_cpu_capability()
    if capability not in PROCESSORS:
        cure = 'Use implementation="tiled"'
        raise RuntimeError(f"the C++ kernel needs a processor with AVX2 or AVX512; received {capability}. {cure}")
    target = library_path()
    target.parent.mkdir(parents=True, exist_ok=True)
    # The library gets its name when it is complete, so that no process loads half of it.
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        unfinished = Path(folder, target.name)
        command = [_compiler(), *_flags(), str(SOURCES / "attention.cpp"), "-o", str(unfinished), *_libraries()]
        compiled = subprocess.run(command, capture_output=True, text=True)
        if compiled.returncode != 0:
            rule = "the C++ kernel needs a compiler of C++20 with OpenMP, as GCC 11 or Clang 14"
            cure = "Name another compiler in the environment variable CXX"
            raise RuntimeError(f"{rule}; {' '.join(command)} failed. {cure}.\n{compiled.stderr}")
        os.replace(unfinished, target)
    return target


def _compiler() -> str:
    wanted = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    found = next((path for name in wanted if (path := shutil.which(name))), None)
    if found is None:
        cure = "Install g++ (Debian, Ubuntu: apt install g++), or name a compiler in the environment variable CXX"
        raise RuntimeError(f"the C++ kernel needs a compiler; {', '.join(wanted)} was not found. {cure}")
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
