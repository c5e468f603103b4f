"""Chat templates in NanoLLM's format: a string for each role, with `${MESSAGE}` where the message goes.

Keys: `system_prompt` (the default one), `system`, `first` (the first message of the user, instead of `user`),
`user`, `bot`, `tool`, `stop`. The text in `bot` before the message is the generation prompt, without trailing
blanks; in many templates it is empty because `user` ends with it. If `bot` does not end with an end-of-turn
token and `user` does not begin with one, the model's own is added after the message.

Source: https://dusty-nv.github.io/NanoLLM/chat.html
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ros2_nanochat.errors import shown

MESSAGE = '${MESSAGE}'
_TEXTS = ('system', 'first', 'user', 'bot', 'tool')
KEYS = ('name', 'system_prompt', *_TEXTS, 'stop')
_RENAMED = {'tool_response': 'tool'}
_IGNORED = ('tool_call', 'tool_spec')  # for NanoLLM's function calling


def check_nanollm_format(template: Mapping, where: str, line_of=lambda key: '') -> dict:
    """Check a template and return it with the current names of its keys.

    Args:
        template: The template.
        where: The file or option it comes from, for errors.
        line_of: Returns `, line n` for a key, or ''.

    Raises:
        ValueError: A key is unknown or has the wrong value; the text names it.
    """
    if not isinstance(template, Mapping):
        raise ValueError(
            f'{where}: a chat template is an object with the keys {", ".join(KEYS)}, not a'
            f' {type(template).__name__}'
        )
    checked = {}
    for key, value in template.items():
        name = _RENAMED.get(key, key)
        if key in _IGNORED:
            continue
        if name not in KEYS:
            raise ValueError(
                f'{where}{line_of(key)}: a chat template has no {shown(key)}; it has {", ".join(KEYS)}'
            )
        if name == 'stop':
            value = [value] if isinstance(value, (str, int)) else value
            if not isinstance(value, Sequence) or not all(
                isinstance(s, (str, int)) and not isinstance(s, bool) and s != '' for s in value
            ):
                raise ValueError(
                    f'{where}{line_of(key)}: stop is a list of strings or token ids, not {shown(value)}'
                )
            value = list(value)
        elif value is None and name in ('system', 'first', 'tool', 'system_prompt'):
            continue
        elif not isinstance(value, str):
            raise ValueError(f'{where}{line_of(key)}: {key} is a string, not {shown(value)}')
        elif name in _TEXTS and value.count(MESSAGE) != 1:
            raise ValueError(
                f'{where}{line_of(key)}: {key} has to hold {MESSAGE} once, where the message goes; it is'
                f' {shown(value)}'
            )
        checked[name] = value
    for name in ('user', 'bot'):
        if name not in checked:
            raise ValueError(f'{where}: a chat template needs {name!r}, a string that holds {MESSAGE}')
    return checked


class NanoLLMFormat:
    """One template in this format.

    Args:
        template: The template, checked by `check_nanollm_format`.
        variables: Texts for `${bos_token}` and `${eos_token}`.
        ends: Texts of the tokens that end a turn, the most likely first.
        name: Its name, unless the template holds one.
    """

    writes_bos = False
    takes_text = True
    alternates = True  # neighbours of one role are joined: the text behind `user` often begins the reply
    image_markers = ()
    takes_reasoning = takes_reasoning_part = False

    def __init__(
        self,
        template: Mapping,
        variables: Mapping[str, str] | None = None,
        ends: Sequence[str] = (),
        name: str = 'custom',
    ):
        self.name = template.get('name', name)
        self.system_prompt = template.get('system_prompt')
        self.stop = template.get('stop')
        variables = variables or {}
        filled = {}
        for role in _TEXTS:
            if role in template:
                text = template[role]
                for variable in ('bos_token', 'eos_token'):
                    text = text.replace('${' + variable + '}', variables.get(variable, ''))
                filled[role] = tuple(text.split(MESSAGE))
        before, after = filled['bot']
        is_closed = any(end in after for end in (*ends, *(s for s in self.stop or () if isinstance(s, str))))
        if not is_closed and not any(
            end in filled['user'][0] for end in ends
        ):  # NanoLLM's template for Gemma ends the bot's turn at the beginning of the user's
            wanted = [end for end in ends if self.stop is None or end in self.stop]
            filled['bot'] = before, (wanted[0] if wanted else '') + after
        # Role -> the text before a message and the text behind it.
        self._around = filled
        self.source = ''.join(map(''.join, filled.values()))

    @property
    def takes_system(self) -> bool:
        """Whether the template writes a system prompt."""
        return 'system' in self._around

    @property
    def takes_tool(self) -> bool:
        """Whether the template writes the answer of a tool."""
        return 'tool' in self._around

    @property
    def generation_prompt(self) -> str:
        """The text after a conversation that lets the model begin its reply."""
        return self._around['bot'][0].rstrip(' ')

    @property
    def before_reply(self) -> str:
        """The text between the user's last words and the beginning of the reply."""
        return self._around['user'][1] + self.generation_prompt

    @property
    def end_of_turn(self) -> str:
        """The text between a reply and the next message of the user."""
        return self._around['bot'][1] + self._around['user'][0]

    def render(self, messages: Sequence[dict], add_generation_prompt: bool = False) -> str:
        """Render messages.

        Args:
            messages: Dicts in the form of transformers, with contents that are strings.
            add_generation_prompt: Let the model begin a reply.
        """
        texts, seen_user = [], False
        for n, message in enumerate(messages):
            role = {'assistant': 'bot'}.get(message['role'], message['role'])
            if role == 'user' and not seen_user:
                seen_user = True
                behind_system = n > 0 and messages[n - 1]['role'] == 'system'
                if 'first' in self._around and (behind_system or not self.takes_system):
                    role = 'first'
            before, after = self._around[role]
            texts += [before, message['content'], after]
        if add_generation_prompt:
            texts.append(self.generation_prompt)
        return ''.join(texts)
