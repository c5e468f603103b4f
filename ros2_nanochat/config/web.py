"""The options of the web page."""

from __future__ import annotations

from dataclasses import dataclass

from ros2_nanochat.config.declaration import Options, option


@dataclass(frozen=True)
class WebConfig(Options):
    """Where the web page is served, and how much of the camera it shows."""

    host: str = option(
        '127.0.0.1',
        'Address to listen on; with any other than a loopback address, the program prints a token that'
        ' browsers need',
        valid=lambda host: bool(host) and not host.isspace(),
        allowed='a name or address of this machine, such as 0.0.0.0',
        parameter=None,
        argument=False,
        metavar='ADDRESS',
    )
    port: int = option(
        8080,
        'TCP port to listen on',
        low=0,
        high=65535,
        special={0: 'any free one'},
        parameter=None,
        argument=False,
    )
    camera_rate: float = option(
        5.0,
        'Camera images per second that the page shows at most; never more than 2 while a reply streams',
        above=0.0,
        high=30.0,
        parameter=None,
        argument=False,
    )
