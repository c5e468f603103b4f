"""All benchmarks, one after the other: `make bench`, or `python -m benchmarks [--quick] [NAME ...]` (busy,
engine, hf, mlc, ros, start, vision, watch, web).

`python -m benchmarks soak [--minutes 30]` runs for half an hour and looks for leaks and lost turns; see
soak.py.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

_HERE = Path(__file__).parent


def main() -> int:
    """Run them as programs of their own, so that one's threads and memory do not weigh on the next."""
    if sys.argv[1:2] == ['soak']:  # has to be asked for: it takes half an hour
        return subprocess.run([sys.executable, '-m', 'benchmarks.soak', *sys.argv[2:]]).returncode
    available = {path.stem.removeprefix('bench_'): path for path in sorted(_HERE.glob('bench_*.py'))}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        '--quick', action='store_true', help='fewer sizes and repeats, where a benchmark has them'
    )
    parser.add_argument('names', nargs='*', metavar='NAME', help=f'{", ".join(available)}; none for all')
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in available]
    if unknown:
        parser.error(f'there is no benchmark {unknown[0]!r}: {", ".join(available)}')
    failed = []
    for name in options.names or available:
        print(f'\n=== {name} ===', flush=True)
        arguments = ['--plot', str(_HERE / 'engine.png')] if name == 'engine' else []
        quick = ['--quick'] if options.quick and '--quick' in available[name].read_text() else []
        if subprocess.run(
            [sys.executable, '-m', f'benchmarks.{available[name].stem}', *arguments, *quick]
        ).returncode:
            failed.append(name)
    if failed:
        print(f'failed: {", ".join(failed)}', file=sys.stderr)
    return len(failed)


if __name__ == '__main__':
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
