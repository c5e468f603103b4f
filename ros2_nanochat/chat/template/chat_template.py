"""Chat templates: turn messages into text with the model's markup, and the text into a `Prompt` in which only
markup produces special tokens.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ros2_nanochat.answer.call_format import CallFormat
from ros2_nanochat.answer.tool import Tool
from ros2_nanochat.chat.message import ChatMessage
from ros2_nanochat.chat.model import ChatModel
from ros2_nanochat.chat.template.arranging import arrange
from ros2_nanochat.chat.template.builtin import BUILTIN
from ros2_nanochat.chat.template.finding import TemplateFinder
from ros2_nanochat.chat.template.image_token import find_image_token
from ros2_nanochat.chat.template.jinja import JinjaMarkup
from ros2_nanochat.chat.template.markup import Placeholders, Runs, SpecialFinder
from ros2_nanochat.chat.template.plain_tools import with_tools_described, write_out
from ros2_nanochat.chat.template.tool_style import ToolStyle, learn_tool_style
from ros2_nanochat.chat.template.turns import Conversation
from ros2_nanochat.chat.template.variables import check_template_options, warn_of_unread
from ros2_nanochat.chat.template.written import Written
from ros2_nanochat.model_info import SpecialToken
from ros2_nanochat.prompt import Preceding, Prompt


class ChatTemplate:
    """The template of one model's conversations.

    Args:
        model: The model.
        chat_template: A name (see `names`), a JSON or Jinja file, Jinja source, a dict in NanoLLM's format,
            or None: the model's own template, else a built-in one for its name or type.
        options: Variables of the template, of JSON's types; texts in them are never read as markup.

    Attributes:
        name: Its name.
        system_prompt: The default system prompt, or None.
        stop: Ids and strings that end a reply.
        tools: What the model may call, described in the prompt.
    """

    def __init__(
        self,
        model: ChatModel,
        chat_template: str | Mapping | None = None,
        options: Mapping[str, Any] | None = None,
    ):
        info = model.info
        self.options = check_template_options(options)
        self._model = model
        self._variables = dict(info.named_tokens)
        texts = {token.id: token.text for token in info.special_tokens}
        if info.bos_token_id is not None:
            self._variables.setdefault('bos_token', texts.get(info.bos_token_id, ''))
        ends = [self._variables['eos_token']] if 'eos_token' in self._variables else []
        ends += [texts[i] for i in sorted(info.eos_token_ids) if i in texts and texts[i] not in ends]
        self._variables.setdefault('eos_token', ends[0] if ends else '')
        self._ends = ends
        self.markup = TemplateFinder(info, self._variables, ends, self.options).find(chat_template)
        self.tools: list[Tool] = []
        self.name = self.markup.name
        warn_of_unread(self.options, self.markup)
        self.system_prompt = self.markup.system_prompt
        self._by_id = {token.id: token for token in info.special_tokens}
        self._by_text = {token.text: token for token in info.special_tokens}
        self._ordinary: dict[int, bool] = {}
        self._finder = SpecialFinder(info.special_tokens)
        self.image_token = find_image_token(self.markup.image_markers, self._finder, model.vision)
        extra = (
            [SpecialToken(-1, self.image_token)]
            if self.image_token and self.image_token not in self._by_text
            else []
        )
        self._protected = SpecialFinder([*info.special_tokens, *extra], ignore_case=True)
        self._runs = Runs(model.tokenize, self._is_protected, lambda i: self._by_id[i].text)
        self.stop = self._find_stop()

    @staticmethod
    def names() -> list[str]:
        """Return the names of the built-in templates."""
        return sorted(BUILTIN)

    def _find_stop(self) -> list[int | str]:
        info = self._model.info
        stops = self.markup.stop
        if stops is None:
            end = next((token.text for _, _, token in self._finder.find(self.markup.end_of_turn)), None)
            stops = [end] if end is not None and end != self._variables.get('bos_token') else []
        found = [self._stop_id(s) for s in stops]
        return [*found, *sorted(i for i in info.eos_token_ids if i not in found)]

    def _stop_id(self, stop: int | str) -> int | str:
        """The id of a special token. A token that decodes to text stays text: other ids may spell it."""
        token = self._by_text.get(stop) if isinstance(stop, str) else None
        return stop if token is None or self._model.detokenize([token.id]) else token.id

    def _is_protected(self, token_id: int) -> bool:
        """Whether only markup may produce an id. Vocabularies also have added tokens for plain words."""
        token = self._by_id.get(token_id)
        if token is None:
            return False
        if token_id not in self._ordinary:
            self._ordinary[token_id] = not token.text.strip() or (
                token.text not in self.markup.source
                and list(self._model.tokenize(token.text, special=False, preceding=Preceding.SPECIAL_TOKEN))
                == [token_id]
            )
        return not self._ordinary[token_id]

    def _hide(self, text: str, placeholders: Placeholders) -> str:
        return placeholders.hide(
            text, self._protected, lambda token: token.id < 0 or self._is_protected(token.id)
        )

    def render(self, messages: Sequence[ChatMessage], add_generation_prompt: bool | None = None) -> str:
        """Return the text of a conversation, for people to read; see `prompt` for what the model reads."""
        conversation, text = self._arranged(messages, add_generation_prompt)
        for character, value in conversation.placeholders.objects.items():
            text = text.replace(
                character, value.message.text or '' if isinstance(value, Written) else '<image>'
            )
        return conversation.placeholders.restore(text)

    def prompt(
        self,
        messages: Sequence[ChatMessage],
        add_generation_prompt: bool | None = None,
        continues: bool = False,
    ) -> Prompt:
        """Return the prompt of a conversation, from position 0.

        Args:
            messages: The conversation.
            add_generation_prompt: Let the model begin a reply; None: unless the bot spoke last.
            continues: End with the words of the last message, of the bot, for the model to continue.

        Raises:
            ValueError: The template does not accept the conversation.
        """
        if not messages:
            return self._join([])
        conversation, text = self._arranged(messages, add_generation_prompt, continues)
        text = conversation.cut(text) if continues else text
        return self._join(
            self._parts(self._place_images(text, conversation.placeholders), conversation.placeholders)
        )

    def _arranged(
        self, messages: Sequence[ChatMessage], add_generation_prompt: bool | None, continues: bool = False
    ) -> tuple[Conversation, str]:
        generation = messages[-1].role != 'bot' if add_generation_prompt is None else add_generation_prompt
        offered, known = None, None
        if self.tools or any(message.calls for message in messages):
            style = self._tool_style
            if style.variable and self.tools:
                offered = {style.variable: [tool.as_openai() for tool in self.tools]}
            if not style.variable:
                messages = with_tools_described(messages, self.tools, style.format)
            if style.writes_calls:
                known = style.format
            else:
                messages = write_out(messages, style.format, self.markup.takes_tool)
        return arrange(
            messages, self.markup, self._hide, self.image_token, generation, continues, offered, known
        )

    @functools.cached_property
    def _tool_style(self) -> ToolStyle:
        if not isinstance(self.markup, JinjaMarkup):
            return ToolStyle()
        info = self._model.info
        ends = [token.text for token in info.special_tokens if token.id in info.eos_token_ids]
        return learn_tool_style(self.markup, [*self._ends, *ends])

    @property
    def call_format(self) -> CallFormat:
        """How the model writes calls."""
        return self._tool_style.format

    def _place_images(self, text: str, placeholders: Placeholders) -> str:
        """Write out the markup that a model has around an image, with a placeholder for each span."""
        pieces, end = [], 0
        for at in placeholders.find_objects(text):
            value = placeholders.objects[text[at]]
            if not isinstance(value, Written):
                pieces.append(text[end:at])
                pieces += [
                    part if isinstance(part, str) else placeholders.for_object(part)
                    for part in value.embed(self._model)
                ]
                end = at + 1
        return ''.join([*pieces, text[end:]])

    def _parts(self, text: str, placeholders: Placeholders) -> list[Any]:
        special: list[tuple[int, int, Any]] = [
            (start, end, [token.id]) for start, end, token in self._finder.find(text)
        ]
        objects = [(at, at + 1, placeholders.objects[text[at]]) for at in placeholders.find_objects(text)]
        parts: list[Any] = []
        position, preceding = 0, Preceding.START
        for start, end, value in sorted(special + objects, key=lambda item: item[0]) if objects else special:
            if start > position:
                parts.append(self._runs(placeholders.restore(text[position:start]), preceding))
                preceding = Preceding.TEXT
            parts.append(value.ids(self._model) if isinstance(value, Written) else value)
            if not isinstance(value, Written):
                preceding = Preceding.SPECIAL_TOKEN
            elif parts[-1]:
                preceding = Preceding.SPECIAL_TOKEN if parts[-1][-1] in self._by_id else Preceding.TEXT
            position = end
        if position < len(text):
            parts.append(self._runs(placeholders.restore(text[position:]), preceding))
        self._runs.trim()
        return parts

    def _join(self, parts: list[Any]) -> Prompt:
        info, embed = self._model.info, None
        begins = (
            bool(parts) and isinstance(parts[0], (list, tuple)) and list(parts[0][:1]) == [info.bos_token_id]
        )
        if not self.markup.writes_bos and info.add_bos and info.bos_token_id is not None and not begins:
            parts = [[info.bos_token_id], *parts]
        if self._model.has_embed:

            def embed(ids):
                rows = np.asarray(self._model.embed_tokens(ids))
                return rows.reshape(-1, rows.shape[-1])

        merged: list[Any] = []
        for part in parts:  # one list of ids between two images: quicker to join
            if isinstance(part, (list, tuple)) and merged and isinstance(merged[-1], list):
                merged[-1] += part
            else:
                merged.append(list(part) if isinstance(part, (list, tuple)) else part)
        return Prompt.join(merged, embed)
