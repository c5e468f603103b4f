"""`ros2 run nanochat web`: serves the page until a signal."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import rclpy
from rclpy.parameter import Parameter
from rclpy.signals import SignalHandlerOptions

from ros2_nanochat.config import WebConfig, options_of
from ros2_nanochat.config.wording import shown_default
from ros2_nanochat.errors import one_line, require
from ros2_nanochat.processor import restrict_thread
from ros2_nanochat.program import OptionParser
from ros2_nanochat.ros.program import init, parse_options, run_ros_program
from ros2_nanochat.ros.signals import ignore_signals, on_signal
from ros2_nanochat.web.access import Access, is_loopback, new_token

# About a third of the share that a model of niceness 0 gets of a busy core, where both run in one session or
# group of the system. With more, a busy browser beside us would leave us nothing.
_NICENESS = 5
_THREADS = 48  # for what blocks: questions that wait for their answers, services, pictures


def main(args=None) -> int:
    """Run the server. Return the exit code."""
    args = sys.argv if args is None else ['web', *args]
    parser = OptionParser(
        prog='web', description='Serve a page that shows what chat nodes see, are asked, and answer.'
    )
    for option in options_of(WebConfig):
        parser.add_argument(
            f'--{option.name.replace("_", "-")}',
            type=option.kind,
            default=option.default,
            metavar=option.metavar or None,
            help=f'{option.explained()} (default: {shown_default(option.default)})',
        )
    parser.add_argument('--debug', action='store_true', help='show where an error comes from')
    return run_ros_program('web', args, lambda: _run(parser, args))


def _run(parser: argparse.ArgumentParser, args: Sequence[str]) -> int:
    require('aiohttp', 'web')
    restrict_thread(_NICENESS, None)  # first, as the threads of the transport take it over
    done = threading.Event()
    on_signal(done.set)
    options = vars(parse_options(parser, init(args, signal_handler_options=SignalHandlerOptions.NO)))
    debug = options.pop('debug')
    config = WebConfig(**options)
    # rclpy destroys the type description service twice, which can crash a process on close
    node = rclpy.create_node(
        'nanochat_web',
        parameter_overrides=[Parameter('start_type_description_service', value=False)],
    )
    try:
        asyncio.new_event_loop().run_until_complete(_serve(node, config, done, debug))
    finally:
        node.destroy_node()
        rclpy.try_shutdown()
        ignore_signals()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # threads that wait for an answer would delay the end


async def _serve(node, config: WebConfig, done: threading.Event, debug: bool) -> None:
    from aiohttp import web

    from ros2_nanochat.web.pages import Pages
    from ros2_nanochat.web.pictures import Album
    from ros2_nanochat.web.ros_thread import RosThread
    from ros2_nanochat.web.server import make_app

    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(_THREADS, thread_name_prefix='web'))
    access = Access(config.host, '' if is_loopback(config.host) else new_token())
    pages = Pages(Album())
    pages.ros = RosThread(node, _hands_over(loop, pages.listener.deliver), config.camera_rate)
    runner = web.AppRunner(make_app(pages, access), access_log=None)
    if not debug:  # requests that are no HTTP would each fill the log with a traceback
        logging.getLogger('aiohttp').setLevel(logging.CRITICAL)
    await runner.setup()
    try:
        try:
            await _site(runner, config.host.strip('[]'), config.port).start()
        except OSError as error:
            raise OSError(
                f'cannot listen on {config.host}:{config.port}: {one_line(error.strerror or error)}'
                ' (--host and --port name another address)'
            ) from None
        pages.ros.start()
        print(f'the page: {_address(config, runner, access)}', flush=True)
        await _wait(loop, done)
    finally:
        await asyncio.wait_for(runner.cleanup(), 5.0)
        pages.ros.close()


def _site(runner, host: str, port: int):
    """Return what listens on an address. All of IPv6 includes IPv4: our host name may resolve to either."""
    from aiohttp import web

    if host == '::' and socket.has_dualstack_ipv6():
        return web.SockSite(
            runner, socket.create_server((host, port), family=socket.AF_INET6, dualstack_ipv6=True)
        )
    return web.TCPSite(runner, host, port)


def _hands_over(
    loop: asyncio.AbstractEventLoop, deliver: Callable[[list[Any]], None]
) -> Callable[[list[Any]], None]:
    """Return a function that passes batches to `deliver` on the event loop, from any thread."""

    def hand_over(batch: list[Any]) -> None:
        try:
            loop.call_soon_threadsafe(deliver, batch)
        except RuntimeError:
            pass  # the loop has ended, and with it every page

    return hand_over


async def _wait(loop: asyncio.AbstractEventLoop, done: threading.Event) -> None:
    ended = asyncio.Event()

    def wait():
        done.wait()
        loop.call_soon_threadsafe(ended.set)

    threading.Thread(target=wait, name='end', daemon=True).start()
    await ended.wait()


def _address(config: WebConfig, runner, access: Access) -> str:
    port = runner.addresses[0][1]
    host = config.host.strip('[]')
    if host in ('0.0.0.0', '::'):
        host = socket.gethostname()
    host = f'[{host}]' if ':' in host else host
    return f'http://{host}:{port}/' + (f'?token={access.token}' if access.token else '')


if __name__ == '__main__':
    sys.exit(main())
