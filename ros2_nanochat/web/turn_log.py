"""One robot's conversation as pages show it: past messages, ended turns, and replies that stream.

Made from the robot's history, its tokens and its turns. Plain values, without ROS; used on one thread. Each
method returns the events that pages need, as dictionaries for JSON.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ros2_nanochat.web.as_json import MAX_TEXT, to_value

Item = dict[str, Any]
"""A turn: `key`, `query`, `pictures`, `text`, `reasoning`, `state` and, once it has ended, `turn`."""
Event = dict[str, Any]

ASKED, STREAMING, ENDED, LOST, PAST = 'asked', 'streaming', 'ended', 'lost', 'past'
"""States of an item: sent, being answered, ended, its node has gone, known only from the history."""
_MOST = 200  # items that are kept
FRESH = 3.0
"""Seconds after its end in which a turn may be missing in a history that was requested before."""
_NOT_HEARD = '… '  # in place of the beginning of a reply
_TELLING = 20  # characters; fewer also occur in other replies
_FAILED = ('refused', 'error')
_IN_THE_ITEM = ('query', 'reply', 'reasoning')  # fields of a turn that the item has


class TurnLog:
    """The conversation.

    Args:
        clock: Returns the time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._items: dict[str, Item] = {}
        self._ended: dict[str, float] = {}  # when
        self._numbers = itertools.count()
        self._about: Event = {'system': '', 'tokens': 0, 'max_tokens': 0}
        self._doubted = ''  # key of the reply that streams and that may be the last one of the history

    def conversation(self) -> Event:
        """Return the event that replaces everything a page shows."""
        return {'type': 'conversation', **self._about, 'items': list(self._items.values())}

    def asked(self, key: str, query: str, pictures: Sequence[Item]) -> list[Event]:
        """Add a question that a page asks.

        Args:
            key: Id of its turn.
            query: The question.
            pictures: The pictures that go with it.
        """
        item = self._items.get(key) or self._add(key, ASKED)
        item.update(query=query, pictures=[*pictures, *item['pictures']])
        return [_changed(item)]

    def token(self, token: dict[str, Any]) -> list[Event]:
        """Add a piece of a reply.

        Args:
            token: A nanochat/msg/Token.
        """
        item = self._items.get(token['turn_id'])
        if item is None:
            item = self._add(token['turn_id'], ASKED)
            if token['index'] > 0:
                item['text'] = _NOT_HEARD  # the turn will have all of it
        if item['state'] in (ENDED, LOST) or token['last']:
            return []
        part = 'reasoning' if token['reasoning'] else 'text'
        item[part] = (item[part] + token['text'])[:MAX_TEXT]
        if item['state'] == ASKED:
            item['state'] = STREAMING
            return [_changed(item)]
        return [{'type': 'piece', 'key': item['key'], part: token['text'], 'tokens': token['num_tokens']}]

    def begun(self, key: str) -> list[Event]:
        """Record that a turn goes on of which nothing else is known yet."""
        return [] if key in self._items else [_changed(self._add(key, ASKED))]

    def ended(self, turn: dict[str, Any], pictures: Sequence[Item] = ()) -> list[Event]:
        """Record the end of a turn. Its topic and its action may both announce it.

        Args:
            turn: A nanochat/msg/Turn.
            pictures: The camera's picture that went with it.
        """
        item = self._items.get(turn['turn_id']) or self._add(turn['turn_id'], ASKED)
        if item['state'] == ENDED:
            return []
        item.update(
            query=turn['query'],
            text=turn['reply'],
            reasoning=turn['reasoning'],
            state=ENDED,
            pictures=[*item['pictures'], *pictures],
            turn={name: value for name, value in turn.items() if name not in _IN_THE_ITEM},
        )
        if turn['prompt_tokens']:
            self._about['tokens'] = turn['prompt_tokens'] + turn['new_tokens']
        self._ended[item['key']] = self._clock()
        return [_changed(item)]

    def lost(self, key: str, reason: str) -> list[Event]:
        """Record that no end of a turn will come.

        Args:
            key: Id of the turn.
            reason: Why.
        """
        item = self._items.get(key)
        if item is None or item['state'] in (ENDED, PAST, LOST):
            return []
        item.update(state=LOST, error=reason)
        return [_changed(item)]

    def all_lost(self, reason: str) -> list[Event]:
        """Record that the robot's node has gone."""
        return [event for key in list(self._items) for event in self.lost(key, reason)]

    @property
    def nameless(self) -> bool:
        """Whether a reply streams whose question is not known, because another client asked it."""
        return any(item['state'] in (ASKED, STREAMING) and not item['query'] for item in self._items.values())

    def is_doubtful(self, key: str) -> bool:
        """Return whether a turn may be in the last history a second time: too little of it was heard then.
        When it has ended, another history shows whether it is.
        """
        return bool(key) and key == self._doubted

    def has_pictures(self, key: str) -> bool:
        """Return whether a turn has pictures."""
        return key in self._items and bool(self._items[key]['pictures'])

    def history(
        self, messages: Sequence[dict[str, Any]], tokens: int, max_tokens: int, anew: bool = False
    ) -> list[Event]:
        """Take over the robot's own history: what it does not have has been forgotten.

        Args:
            messages: Its messages, each with `role`, `text` and `num_images`.
            tokens: Tokens that they take.
            max_tokens: Tokens that fit.
            anew: We have not followed the robot since the last one, so there is nothing that it lacks.
        """
        system, exchanges = _exchanges(messages)
        self._about = {'system': system, 'tokens': tokens, 'max_tokens': max_tokens}
        live = [item for item in self._items.values() if item['state'] in (ASKED, STREAMING)]
        ended = [item for item in self._items.values() if item['state'] == ENDED]
        self._doubted = live[-1]['key'] if live else ''
        if exchanges and live and _is_of(exchanges[-1], live[-1]):
            self._doubted = ''
            live[-1]['query'] = live[-1]['query'] or exchanges[-1]['query']
            exchanges.pop()
        self._items = {item['key']: item for item in [*self._merged(exchanges, ended, anew), *live][-_MOST:]}
        self._ended = {key: when for key, when in self._ended.items() if key in self._items}
        return [self.conversation()]

    def _merged(self, exchanges: list[Item], ended: list[Item], anew: bool) -> list[Item]:
        """Each exchange, as the turn that it was if we know it; between them the turns that failed."""
        found: dict[int, int] = {}
        before = len(ended)
        for n in reversed(range(len(exchanges))):
            same = (exchanges[n]['query'], exchanges[n]['text'])
            for i in reversed(range(before)):
                if (ended[i]['query'], ended[i]['text'].strip()) == (same[0], same[1].strip()):
                    found[n] = before = i
                    break
        merged, done = [], 0
        for n, exchange in enumerate(exchanges):
            if n in found:
                merged += [item for item in ended[done : found[n]] if _failed(item)]
                merged.append(ended[found[n]])
                done = found[n] + 1
            else:
                merged.append({**exchange, 'key': f'past-{next(self._numbers)}', 'state': PAST})
        now = self._clock()
        rest = [] if anew else ended[done:] if found or not exchanges else []
        recent = [item for item in rest if _failed(item) or now - self._ended[item['key']] < FRESH]
        return merged + recent

    def forget_live(self) -> None:
        """Forget replies that stream: nobody has listened for a while."""
        self._items = {key: item for key, item in self._items.items() if item['state'] in (ENDED, PAST)}

    def clear(self) -> None:
        """Forget everything but replies that stream, for example after a reset."""
        self._items = {key: item for key, item in self._items.items() if item['state'] in (ASKED, STREAMING)}
        self._ended.clear()

    def _add(self, key: str, state: str) -> Item:
        item = {'key': key, 'query': '', 'pictures': [], 'text': '', 'reasoning': '', 'state': state}
        self._items[key] = item
        while len(self._items) > _MOST:
            oldest = next(iter(self._items))
            del self._items[oldest]
            self._ended.pop(oldest, None)
        return item


def joined(tokens: Iterable[Any]) -> list[dict[str, Any]]:
    """Return pieces of replies as values, successive ones of the same reply as one.

    Args:
        tokens: Messages of the type nanochat/msg/Token.
    """
    out: list[dict[str, Any]] = []
    before: tuple = ()
    for token in tokens:
        about = token.turn_id, token.reasoning, token.last
        if about == before and not token.last:
            out[-1]['text'] += to_value(token.text)
            out[-1]['num_tokens'] += token.num_tokens
        else:
            out.append(to_value(token))
        before = about
    return out


def _exchanges(messages: Sequence[dict[str, Any]]) -> tuple[str, list[Item]]:
    """The system prompt, and the messages as questions with their answers."""
    system, images = '', 0
    found: list[Item] = []
    for message in messages:
        role, text = message['role'], message['text']
        if role == 'system' and not found:
            system = text
        elif role == 'user':
            images += message['num_images']
            if text:
                found.append(_exchange(text, images))
                images = 0
        elif role in ('bot', 'assistant') and text:
            if not found:
                found.append(_exchange('', images))
            before = found[-1]['text']
            found[-1]['text'] = f'{before}\n\n{text}' if before else text
    return system, found


def _exchange(query: str, images: int) -> Item:
    pictures = [{'note': 'a picture'}] * images
    return {'query': query, 'pictures': pictures, 'text': '', 'reasoning': ''}


def _is_of(exchange: Item, live: Item) -> bool:
    """Whether the last exchange of the history is a turn that has not ended yet."""
    if live['query'] and live['query'] != exchange['query']:
        return False
    text, heard = exchange['text'], live['text'].removeprefix(_NOT_HEARD)
    if not text or not heard:
        return not text
    from_the_middle = heard != live['text']
    if (from_the_middle or not live['query']) and len(heard) < _TELLING:
        return False
    return heard in text if from_the_middle else text.startswith(heard)


def _failed(item: Item) -> bool:
    return item['turn']['finish_reason'] in _FAILED


def _changed(item: Item) -> Event:
    return {'type': 'item', 'item': dict(item)}
