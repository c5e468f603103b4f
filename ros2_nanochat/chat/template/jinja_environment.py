"""The environment in which chat templates are rendered: Jinja's sandbox with the settings and helpers of
transformers.

Needs only Jinja, so that a separate process can use it.
"""

from __future__ import annotations

import datetime
import functools
import json
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace


class Refused(ValueError):
    """A template that does not render a conversation.

    The text says whether the template or Jinja raised it.
    """


class _Generation(Extension):
    """Accepts `{% generation %}`, which marks the model's own words for training, and renders its body."""

    tags = {'generation'}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(['name:endgeneration'], drop_needle=True)
        return nodes.Scope(body, lineno=line)


class _Namespace(Namespace):
    """Jinja's namespace, without names that begin with an underscore: they would lead out of the sandbox."""

    def __init__(*args, **kwargs):
        self, args = args[0], args[1:]
        names = dict(*args, **kwargs)
        for name in names:
            _refuse_private(name)
        Namespace.__init__(self, names)

    def __setitem__(self, name, value):
        _refuse_private(name)
        Namespace.__setitem__(self, name, value)


def _refuse_private(name):
    if str(name).startswith('_'):
        raise jinja2.exceptions.SecurityError(f'a chat template may not set {name!r}')


def _raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)


def _tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


@functools.lru_cache(maxsize=1)
def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, 'jinja2.ext.loopcontrols']
    )
    environment.filters['tojson'] = _tojson
    environment.globals.update(
        raise_exception=_raise_exception,
        namespace=_Namespace,
        strftime_now=lambda form: datetime.datetime.now().strftime(form),
    )
    return environment


@functools.lru_cache(maxsize=64)
def compile_jinja(source: str) -> jinja2.Template:
    """Compile a template, which evaluates its constant expressions."""
    return _environment().from_string(source)


def render(source: str, context: dict[str, Any]) -> str:
    """Render a template in this process, without limits.

    Args:
        source: The template.
        context: Its variables.

    Raises:
        Refused: The template raises an error or cannot render this.
        MemoryError: It needs too much memory.
    """
    try:
        return compile_jinja(source).render(**context)
    except jinja2.TemplateError as error:
        raise Refused(f'refuses this conversation: {error.message or type(error).__name__}') from error
    except MemoryError:
        raise
    except Exception as error:  # whatever the expressions of the template raise
        raise Refused(f'cannot render this conversation: {error or type(error).__name__}') from error
