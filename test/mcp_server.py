"""A small MCP server for tests, over standard input and output."""

import asyncio
import os

try:
    from mcp.server.fastmcp import FastMCP as Server
except ImportError:  # its name since version 2 of the SDK
    from mcp.server.mcpserver import MCPServer as Server

server = Server('test')


@server.tool()
def add(a: int, b: int) -> str:
    """Add two whole numbers."""
    return str(a + b)


@server.tool()
def fail() -> str:
    """Fail."""
    raise ValueError('no such page')


@server.tool()
async def slow() -> str:
    """Take long."""
    await asyncio.sleep(60)
    return 'late'


@server.tool()
def end() -> str:
    """End the server."""
    os._exit(1)


if __name__ == '__main__':
    server.run()
