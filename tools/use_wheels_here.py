"""Make the ROS wheels of a virtual environment usable by CMake: `python tools/use_wheels_here.py`, run by the
environment's own Python.

The CMake files inside the wheels name the folders of the Python they were built with
(`/opt/python/cp311-cp311/...`), and CMake refuses targets whose include folders do not exist. This puts the
folders of this Python in their place. To be repeated after each install of a ROS wheel; repeating it changes
nothing.
"""

import pathlib
import re
import sys
import sysconfig

INCLUDE = re.compile(r'/opt/python/cp\d+-cp\d+/include/python3\.\d+')
PACKAGES = re.compile(r'/opt/python/cp\d+-cp\d+/lib/python3\.\d+/site-packages')


def main():
    changed = 0
    for path in pathlib.Path(sys.prefix, 'share').rglob('*.cmake'):
        text = path.read_text()
        here = INCLUDE.sub(sysconfig.get_path('include'), PACKAGES.sub(sysconfig.get_path('purelib'), text))
        if here != text:
            path.write_text(here)
            changed += 1
    print(f'{changed} CMake files now name {sys.prefix}')


if __name__ == '__main__':
    main()
