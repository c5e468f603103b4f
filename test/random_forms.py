"""Random forms of answers, and random values that obey a JSON Schema; for tests and benchmarks."""

from __future__ import annotations

import random
import string
from typing import Any

WORDS = ('door', 'tray', 'red', 'box', 'left', 'über', '椅子', 'a b', 'x"y', 'back\\slash')


def random_value(schema: dict, rng: random.Random) -> Any:
    """A value that obeys a schema of the kinds that `random_schema` makes, or of a ROS type."""
    if 'const' in schema:
        return schema['const']
    if 'enum' in schema:
        return rng.choice(schema['enum'])
    if 'anyOf' in schema:
        return random_value(rng.choice(schema['anyOf']), rng)
    kind = schema['type']
    if kind == 'object':
        required = schema.get('required', ())
        names = [name for name in schema['properties'] if name in required or rng.random() < 0.5]
        return {name: random_value(schema['properties'][name], rng) for name in names}
    if kind == 'array':
        low = schema.get('minItems', 0)
        count = rng.randint(low, min(schema.get('maxItems', low + 3), low + 3))
        return [random_value(schema['items'], rng) for _ in range(count)]
    if kind == 'string':
        return ''.join(rng.choices(WORDS, k=2))[: schema.get('maxLength', 20)].ljust(
            schema.get('minLength', 0), 'x'
        )
    if kind == 'boolean':
        return rng.random() < 0.5
    if kind == 'null':
        return None
    low, high = schema.get('minimum', -1000), schema.get('maximum', 1000)
    if kind == 'integer':
        return rng.choice([low, high, rng.randint(low, high)])
    return rng.choice([low, high, rng.uniform(low, high)])


def random_schema(rng: random.Random, depth: int = 2) -> dict:
    """A JSON Schema of objects, arrays, texts, numbers, enums and unions, nested up to `depth`."""
    kinds = ['string', 'integer', 'number', 'boolean', 'enum', 'null'] + ['object', 'array', 'anyOf'] * (
        depth > 0
    )
    kind = rng.choice(kinds)
    if kind == 'object':
        names = rng.sample(['x', 'y', 'open', 'name of the object', 'speed', 'größe'], rng.randint(1, 4))
        required = [name for name in names if rng.random() < 0.7]
        properties = {name: random_schema(rng, depth - 1) for name in names}
        return {
            'type': 'object',
            'properties': properties,
            'required': required,
            'additionalProperties': False,
        }
    if kind == 'array':
        low = rng.randint(0, 2)
        return {
            'type': 'array',
            'items': random_schema(rng, depth - 1),
            'minItems': low,
            'maxItems': low + rng.randint(0, 2),
        }
    if kind == 'anyOf':
        return {'anyOf': [random_schema(rng, 0), random_schema(rng, 0)]}
    if kind == 'enum':
        return {'enum': rng.sample([*WORDS, 1, 2.5, None, True], rng.randint(1, 4))}
    if kind == 'string':
        return {'type': 'string', 'maxLength': rng.randint(0, 12)}
    if kind == 'integer':
        low = rng.randint(-500, 500)
        return {'type': 'integer', 'minimum': low, 'maximum': low + rng.randint(0, 1000)}
    if kind == 'number':
        low = round(rng.uniform(-10, 10), 2)
        return {'type': 'number', 'minimum': low, 'maximum': round(low + rng.uniform(0.1, 20), 2)}
    return {'type': kind}


def random_object(rng: random.Random) -> dict:
    """A schema whose top is an object."""
    while True:
        schema = random_schema(rng)
        if schema.get('type') == 'object':
            return schema


def random_choice(rng: random.Random) -> list[str]:
    """The alternatives of a choice; some begin alike."""
    beginnings = ['yes', 'no', 'unclear', 'the door', 'nothing', '7']
    texts = {
        rng.choice(beginnings) + rng.choice(['', ' one', 's', ' is open', '!'])
        for _ in range(rng.randint(3, 8))
    }
    return sorted(texts) if len(texts) > 1 else ['yes', 'no']


def random_regex(rng: random.Random) -> str:
    """A regular expression that Python reads the same way, of bounded length."""
    parts = ['[0-9]', '[a-z]', '(yes|no)', 'x', r'\.', '[A-F0-9]', '(a|bc|d)', ' ', 'ü']
    counts = ['', '?', '{1,3}', '{2}', '{0,4}']
    return ''.join(rng.choice(parts) + rng.choice(counts) for _ in range(rng.randint(1, 5))) + rng.choice(
        string.ascii_letters
    )
