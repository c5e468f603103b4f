"""For `pip install .`; everything stands in setup.cfg, which the colcon build reads too."""

from setuptools import setup

setup()
