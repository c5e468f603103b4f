"""Installs llama-cpp-python, compiled for this processor, into the environment whose Python runs this.

    python tools/llama_cpp.py [--build] LOG [PIP-ARGUMENTS...]

An installed one that works is kept, for example your own build with CUDA. Otherwise the wheel of an earlier
build is taken from `$XDG_CACHE_HOME/nanochat/wheels`. If there is none for this version, processor, compiler
and $CMAKE_ARGS, llama.cpp is compiled: only the libraries that nanochat uses, on all cores.

LOG is the file for pip's output. Further arguments are passed to pip. With --build, the wheel is only made
for a later call, and nothing in the environment changes.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OLDEST = (0, 3, 20)  # as in setup.cfg
CORE_MINUTES = 5.5  # of compiling on one core

# What is built, and what switches off the rest of llama.cpp.
TARGETS = 'llama;ggml;mtmd'
OPTIONS = ROOT / 'tools' / 'llama_cpp.cmake'

CHECK = """
import llama_cpp, llama_cpp.llama_cpp as api, llama_cpp.mtmd_cpp
api.llama_log_set(quiet := api.llama_log_callback(lambda *_: None), None)
api.llama_backend_init()
print(llama_cpp.__version__)
"""


def say(text: str) -> None:
    """Write a line as tools/setup.sh does."""
    print(f'[setup] {text}', file=sys.stderr, flush=True)


def installed() -> str | None:
    """Return the version of the installed llama-cpp-python; None if there is none that works here."""
    # in a process of its own: a library for another processor would end it
    run = subprocess.run([sys.executable, '-c', CHECK], capture_output=True, text=True)
    version = run.stdout.strip()
    numbers = tuple(int(number) for number in re.findall(r'\d+', version)[:3])
    return version if run.returncode == 0 and numbers >= OLDEST else None


def wanted() -> str:
    """Return the version that the tests run with."""
    text = (ROOT / 'requirements' / 'constraints.txt').read_text()
    return re.search(r'^llama_cpp_python==(\S+)', text, re.M)[1]


def processor() -> str:
    """Return the features of the processor, on which compiled code depends."""
    with contextlib.suppress(OSError):
        for line in Path('/proc/cpuinfo').read_text().splitlines():
            name, _, value = line.partition(':')
            if name.strip() in ('flags', 'Features'):
                return ' '.join(sorted(value.split()))
    return platform.processor()


def compiler() -> str:
    """Return the version of the C++ compiler."""
    try:
        command = [os.environ.get('CXX') or 'c++', '--version']
        return subprocess.run(command, capture_output=True, text=True).stdout.partition('\n')[0]
    except OSError:
        return ''


def cache(version: str, flags: str) -> Path:
    """Return the folder of the wheel for this version, machine and flags of the user."""
    facts = [
        version,
        platform.machine(),
        processor(),
        compiler(),
        *platform.libc_ver(),
        flags,
        TARGETS,
        OPTIONS.read_text(),
    ]
    key = hashlib.sha256('\0'.join(facts).encode()).hexdigest()[:16]
    base = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
    return Path(base, 'nanochat', 'wheels', f'llama_cpp_python-{version}-{key}')


def pip(log: Path, *arguments: str, **environment: str) -> bool:
    """Run pip; if it fails, show the end of its log and return False."""
    command = [sys.executable, '-m', 'pip', '--disable-pip-version-check', *arguments]
    with open(log, 'ab') as file:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env={**os.environ, **environment},
            start_new_session=True,
        )
    try:
        code = process.wait()
    except BaseException:
        os.killpg(process.pid, signal.SIGTERM)  # pip and the compilers that it started
        raise
    if code:
        say('\n'.join(log.read_text(errors='replace').splitlines()[-25:]))
        say(f'failed: {" ".join(command)} (full log: {log})')
    return code == 0


def build(version: str, flags: str, folder: Path, log: Path) -> Path | None:
    """Compile the wheel and return where it is kept; None if that fails."""
    cores = len(os.sched_getaffinity(0))
    minutes = math.ceil(CORE_MINUTES / cores)
    say(
        f'compiling llama.cpp {version} on {cores} core(s), about {minutes} minute(s); the result is kept in'
        f' {folder.parent}'
    )
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix='.', dir=folder.parent))
    try:
        if not pip(
            log,
            'wheel',
            '--no-deps',
            '--no-cache-dir',  # pip's own cache knows neither processor nor flags
            f'--wheel-dir={made}',
            f'llama-cpp-python=={version}',
            CMAKE_ARGS=f'-DCMAKE_PROJECT_INCLUDE={shlex.quote(str(OPTIONS))} {flags}',
            CMAKE_BUILD_PARALLEL_LEVEL=str(cores),
            SKBUILD_BUILD_TARGETS=TARGETS,
            SKBUILD_NINJA_MAKE_FALLBACK='false',
        ):
            return None
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # another set-up was faster
            made.rename(folder)
        return wheel_in(folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def wheel_in(folder: Path) -> Path | None:
    """Return the wheel in a folder of the cache."""
    return next(folder.glob('*.whl'), None)


def install(wheel: Path, log: Path, arguments: list[str]) -> bool:
    """Install a wheel; return whether it works."""
    return (
        pip(log, 'install', '--force-reinstall', '--no-deps', str(wheel))
        and pip(log, 'install', *arguments, str(wheel))  # what it depends on
        and installed() is not None
    )


def main() -> int:
    """See the top of the file. Return the exit code."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    only_build = sys.argv[1] == '--build'
    log, *arguments = sys.argv[1 + only_build :]
    log = Path(log)
    if found := installed():
        if found != wanted() and not only_build:
            say(f'keeping the installed llama-cpp-python {found}')
        return 0
    version, flags = wanted(), os.environ.get('CMAKE_ARGS', '')
    folder = cache(version, flags)
    wheel = wheel_in(folder)
    if only_build:
        log.write_bytes(b'')
        return 0 if wheel or build(version, flags, folder, log) else 1
    if wheel:
        say(f'installing llama.cpp {version} from {folder}')
        if install(wheel, log, arguments):
            return 0
    wheel = build(version, flags, folder, log)
    if wheel is None:
        return 1
    if not install(wheel, log, arguments):
        say(f'the compiled llama-cpp-python does not work: {sys.executable} -c "import llama_cpp"')
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
