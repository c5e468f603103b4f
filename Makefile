# make demo                    build, then start the node and a terminal client that talks to it over ROS 2; PROMPT="..." asks once
# make demo-vision             the same with a small model that sees, and a camera that shows drawn pictures
# make demo-web                the same, with a page to watch and ask in a browser
# make demo-watch              three standing questions about a camera that shows a moving object, and a person's question in between
# make demo-tools              a small simulated robot that the model switches, reads, drives and stops
# make test                    all tests except the long ones; make test-long: the long ones
# make lint                    ruff (rules and format) and mypy
# make bench                   figures of this machine, each beside a raw loop of llama.cpp
# make setup                   only the set-up; the other targets run it when needed
#
# ROS_DISTRO=kilted (default) or jazzy; or any distro that is installed under /opt/ros.

SHELL := /bin/bash
export ROS_DISTRO PYTHON ROS_PREFIX PROMPT MODEL
# T=test/ros runs only the tests in that folder.
T ?=

.PHONY: setup lint demo demo-vision demo-watch demo-web demo-tools test test-long bench clean

setup:
	@tools/setup.sh demo

lint:
	@tools/setup.sh lint
	@tools/lint.sh

demo:
	@tools/setup.sh demo
	@source env.sh && python tools/demo.py

demo-vision:
	@tools/setup.sh vision
	@source env.sh && python tools/demo.py --vision

demo-web:
	@tools/setup.sh vision
	@source env.sh && python tools/demo.py --web

demo-watch:
	@tools/setup.sh vision
	@source env.sh && python tools/demo.py --watch

demo-tools:
	@tools/setup.sh demo
	@source env.sh && python tools/demo_tools.py

test:
	@tools/setup.sh test
	@source env.sh && tools/test.sh -m 'not long' $(T)

test-long:
	@tools/setup.sh test
	@tools/vllm_env.sh
	@source env.sh && tools/test.sh -m long $(T)

bench:
	@tools/setup.sh bench
	@source env.sh && python -m benchmarks

clean:
	rm -rf .venv .venv-* build build-* install install-* log log-* dist *.egg-info
