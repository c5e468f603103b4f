"""Small chat templates with tools, one for each way in which model families write calls. Written here, after
what the models' authors document.
"""

from __future__ import annotations

_DESCRIBED = """{{- '<|im_start|>system\\n' }}
{%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n' }}{% endif %}
{%- for tool in tools or [] %}{{ tool | tojson + '\\n' }}{% endfor %}{{- '<|im_end|>\\n' }}"""

# Hermes and Qwen: JSON between tags
HERMES = """{%- if tools %}
{{- '<|im_start|>system\\n' }}
{%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{% endif %}
{{- 'You may call functions:\\n<tools>' }}
{%- for tool in tools %}{{- '\\n' + tool | tojson }}{% endfor %}
{{- '\\n</tools><|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
{%- if message.role == 'user' %}{{- '<|im_start|>user\\n' + message.content + '<|im_end|>\\n' }}
{%- elif message.role == 'assistant' %}
{{- '<|im_start|>assistant' }}
{%- if message.content %}{{- '\\n' + message.content }}{% endif %}
{%- for call in message.tool_calls or [] %}
{{- '\\n<tool_call>\\n{"name": "' + call.function.name + '", "arguments": '
    + call.function.arguments | tojson + '}\\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- elif message.role == 'tool' %}
{%- if loop.index0 == 0 or messages[loop.index0 - 1].role != 'tool' %}{{- '<|im_start|>user' }}{% endif %}
{{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\\n' }}{% endif %}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}"""

# Llama 3: nothing but JSON, one call in a reply
LLAMA_3 = """{{- bos_token }}
{%- if tools %}{{- '<|start_header_id|>system<|end_header_id|>\\n\\n' + tools | tojson(indent=4)
    + '<|eot_id|>' }}{% endif %}
{%- for message in messages %}
{%- if message.role == 'tool' %}
{{- '<|start_header_id|>ipython<|end_header_id|>\\n\\n' + message.content | tojson + '<|eot_id|>' }}
{%- elif message.tool_calls %}
{%- if message.tool_calls | length != 1 %}{{- raise_exception('one call at a time') }}{% endif %}
{%- set call = message.tool_calls[0].function %}
{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n{"name": "' + call.name + '", "parameters": '
    + call.arguments | tojson + '}<|eot_id|>' }}
{%- else %}
{{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' + message.content | trim
    + '<|eot_id|>' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"""

# Mistral: a list behind a special token, ids of nine letters and digits, roles that alternate
MISTRAL = """{{- bos_token }}
{%- set ns = namespace(index=0) %}
{%- for message in messages %}
{%- if message.role == 'user' or (message.role == 'assistant' and not message.tool_calls) %}
{%- if (message.role == 'user') != (ns.index % 2 == 0) %}{{- raise_exception('not your turn') }}{% endif %}
{%- set ns.index = ns.index + 1 %}
{%- endif %}
{%- endfor %}
{%- for message in messages %}
{%- if message.role == 'user' %}
{%- if tools and loop.first %}{{- '[AVAILABLE_TOOLS]' + tools | tojson + '[/AVAILABLE_TOOLS]' }}{% endif %}
{{- '[INST]' + message.content + '[/INST]' }}
{%- elif message.tool_calls %}
{{- '[TOOL_CALLS][' }}
{%- for call in message.tool_calls %}
{%- if call.id | length != 9 %}{{- raise_exception('ids have nine characters') }}{% endif %}
{{- '{"name": "' + call.function.name + '", "arguments": ' + call.function.arguments | tojson
    + ', "id": "' + call.id + '"}' }}
{{- ', ' if not loop.last }}
{%- endfor %}
{{- ']' + eos_token }}
{%- elif message.role == 'assistant' %}{{- message.content + eos_token }}
{%- elif message.role == 'tool' %}
{{- '[TOOL_RESULTS]{"content": ' + message.content | tojson + ', "call_id": "' + message.tool_call_id
    + '"}[/TOOL_RESULTS]' }}
{%- endif %}
{%- endfor %}"""

# Mistral's newer models: the name and the arguments behind special tokens
MISTRAL_ARGS = """{{- bos_token }}{%- if tools %}{{- '[AVAILABLE_TOOLS]' + tools | tojson
    + '[/AVAILABLE_TOOLS]' }}{% endif %}
{%- for message in messages %}
{%- if message.role == 'user' %}{{- '[INST]' + message.content + '[/INST]' }}
{%- elif message.role == 'assistant' %}
{{- message.content or '' }}
{%- for call in message.tool_calls or [] %}{{- '[TOOL_CALLS]' + call.function.name + '[ARGS]'
    + call.function.arguments | tojson }}{% endfor %}
{{- eos_token }}
{%- elif message.role == 'tool' %}{{- '[TOOL_RESULTS]' + message.content + '[/TOOL_RESULTS]' }}
{%- endif %}
{%- endfor %}"""

# DeepSeek: special tokens around everything, a block of code
DEEPSEEK = """{{- bos_token }}{%- if tools %}{{- '## Tools\\n' + tools | tojson + '\\n' }}{% endif %}
{%- for message in messages %}
{%- if message.role == 'user' %}{{- '<｜User｜>' + message.content }}
{%- elif message.role == 'assistant' and message.tool_calls %}
{{- '<｜Assistant｜>' + message.content + '<｜tool▁calls▁begin｜>' }}
{%- for call in message.tool_calls %}
{{- '<｜tool▁call▁begin｜>function<｜tool▁sep｜>' + call.function.name + '\\n```json\\n'
    + call.function.arguments | tojson + '\\n```<｜tool▁call▁end｜>' }}
{{- '\\n' if not loop.last }}
{%- endfor %}
{{- '<｜tool▁calls▁end｜><｜end▁of▁sentence｜>' }}
{%- elif message.role == 'assistant' %}{{- '<｜Assistant｜>' + message.content + '<｜end▁of▁sentence｜>' }}
{%- elif message.role == 'tool' %}{{- '<｜tool▁output▁begin｜>' + message.content + '<｜tool▁output▁end｜>' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<｜Assistant｜>' }}{% endif %}"""

# Command: a plan before the calls, which are counted
COMMAND = """{{- bos_token }}{%- if tools %}{{- '<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>'
    + tools | tojson + '<|END_OF_TURN_TOKEN|>' }}{% endif %}
{%- set ns = namespace(n=0) %}
{%- for message in messages %}
{%- if message.role == 'user' %}{{- '<|START_OF_TURN_TOKEN|><|USER_TOKEN|>' + message.content
    + '<|END_OF_TURN_TOKEN|>' }}
{%- elif message.tool_calls %}
{{- '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|><|START_THINKING|>' + (message.tool_plan or '')
    + '<|END_THINKING|><|START_ACTION|>[\\n' }}
{%- for call in message.tool_calls %}
{{- '    {"tool_call_id": "' + ns.n | string + '", "tool_name": "' + call.function.name
    + '", "parameters": ' + call.function.arguments | tojson + '}' + (',' if not loop.last else '') + '\\n' }}
{%- set ns.n = ns.n + 1 %}
{%- endfor %}
{{- ']<|END_ACTION|><|END_OF_TURN_TOKEN|>' }}
{%- elif message.role == 'assistant' %}{{- '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|><|START_RESPONSE|>'
    + message.content + '<|END_RESPONSE|><|END_OF_TURN_TOKEN|>' }}
{%- elif message.role == 'tool' %}{{- '<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|><|START_TOOL_RESULT|>'
    + message.content | tojson + '<|END_TOOL_RESULT|><|END_OF_TURN_TOKEN|>' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}{% endif %}"""

# Granite 3: tools are described, calls are not written
GRANITE = """{%- if tools %}{{- '<|start_of_role|>available_tools<|end_of_role|>' + tools | tojson
    + 'Answer with <|tool_call|> and a list<|end_of_text|>\\n' }}{% endif %}
{%- for message in messages %}{{- '<|start_of_role|>' + message.role + '<|end_of_role|>'
    + message.content + '<|end_of_text|>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{- '<|start_of_role|>assistant<|end_of_role|>' }}{% endif %}"""

# SmolLM3: the variable has another name
SMOLLM_3 = """{{- '<|im_start|>system\\n' }}
{%- if xml_tools %}{{- 'Tools:\\n' }}{%- for tool in xml_tools %}{{- tool | string + '\\n' }}{% endfor %}
{{- 'Call them like <tool_call>\\n{"name": ...}\\n</tool_call>' }}{% endif %}{{- '<|im_end|>\\n' }}
{%- for message in messages %}{{- '<|im_start|>' + ('user' if message.role == 'tool' else message.role)
    + '\\n' + message.content + '<|im_end|>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}"""

# Kimi: the id is made of the name and a number
KIMI = """{%- if tools %}{{- '<|im_system|>tool_declare<|im_middle|>' + tools | tojson
    + '<|im_end|>' }}{% endif %}
{%- for message in messages %}
{%- if message.role == 'assistant' %}{{- '<|im_assistant|>assistant<|im_middle|>' + message.content }}
{%- if message.tool_calls %}{{- '<|tool_calls_section_begin|>' }}
{%- for call in message.tool_calls %}{{- '<|tool_call_begin|>functions.' + call.function.name + ':'
    + loop.index0 | string + '<|tool_call_argument_begin|>' + call.function.arguments | tojson
    + '<|tool_call_end|>' }}{% endfor %}
{{- '<|tool_calls_section_end|>' }}{% endif %}{{- '<|im_end|>' }}
{%- else %}{{- '<|im_user|>' + message.role + '<|im_middle|>' + message.content + '<|im_end|>' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_assistant|>assistant<|im_middle|>' }}{% endif %}"""

# Qwen 3 Coder: arguments between tags of their own
CODER = (
    _DESCRIBED
    + """
{%- for message in messages if message.role != 'system' %}
{{- '<|im_start|>' + ('user' if message.role == 'tool' else message.role) + '\\n' + message.content }}
{%- for call in message.tool_calls or [] %}
{{- ('\\n' if message.content or not loop.first else '') + '<tool_call>\\n<function='
    + call.function.name + '>\\n' }}
{%- for key, value in call.function.arguments.items() %}
{{- '<parameter=' + key + '>\\n' + (value if value is string else value | tojson) + '\\n</parameter>\\n' }}
{%- endfor %}
{{- '</function>\\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}"""
)

# GLM 4.5: names and values between tags
GLM = (
    _DESCRIBED
    + """
{%- for message in messages if message.role != 'system' %}
{{- '<|' + ('observation' if message.role == 'tool' else message.role) + '|>\\n' + message.content }}
{%- for call in message.tool_calls or [] %}
{{- '\\n<tool_call>' + call.function.name + '\\n' }}
{%- for key, value in call.function.arguments.items() %}
{{- '<arg_key>' + key + '</arg_key>\\n<arg_value>' + (value if value is string else value | tojson)
    + '</arg_value>\\n' }}
{%- endfor %}
{{- '</tool_call>' }}
{%- endfor %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>\\n' }}{% endif %}"""
)

# Gemma 4: no JSON, texts between special tokens
GEMMA = """{{- bos_token }}{%- if tools %}{{- '<|turn>system\\n' + tools | tojson + '<turn|>\\n' }}{% endif %}
{%- for message in messages %}
{%- if message.role == 'tool' %}{{- '<|tool_response>' + message.content + '<tool_response|>' }}
{%- else %}{{- '<|turn>' + ('model' if message.role == 'assistant' else message.role) + '\\n'
    + message.content }}
{%- for call in message.tool_calls or [] %}
{{- '<|tool_call>call:' + call.function.name + '{' }}
{%- for key, value in call.function.arguments.items() %}
{{- key + ':' + ('<|"|>' + value + '<|"|>' if value is string else value | tojson)
    + (',' if not loop.last else '') }}
{%- endfor %}
{{- '}<tool_call|>' }}
{%- endfor %}
{{- '<turn|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|turn>model\\n' }}{% endif %}"""

# gpt-oss: a call goes to a recipient, in a channel
GPT_OSS = """{%- if tools %}{{- '<|start|>developer<|message|>' + tools | tojson + '<|end|>' }}{% endif %}
{%- set ns = namespace(name='') %}
{%- for message in messages %}
{%- if message.role == 'assistant' and message.tool_calls %}
{%- if message.content and message.thinking %}{{- raise_exception('not both') }}{% endif %}
{%- if message.content or message.thinking %}{{- '<|start|>assistant<|channel|>analysis<|message|>'
    + (message.content or message.thinking) + '<|end|>' }}{% endif %}
{%- set ns.name = message.tool_calls[0].function.name %}
{{- '<|start|>assistant to=functions.' + ns.name + '<|channel|>commentary json<|message|>'
    + message.tool_calls[0].function.arguments | tojson + '<|call|>' }}
{%- elif message.role == 'assistant' %}{{- '<|start|>assistant<|channel|>final<|message|>'
    + message.content + '<|end|>' }}
{%- elif message.role == 'tool' %}{{- '<|start|>functions.' + ns.name
    + ' to=assistant<|channel|>commentary<|message|>' + message.content | tojson + '<|end|>' }}
{%- else %}{{- '<|start|>' + message.role + '<|message|>' + message.content + '<|end|>' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start|>assistant' }}{% endif %}"""

# calls as Python
PYTHON = (
    _DESCRIBED
    + """
{%- for message in messages if message.role != 'system' %}
{{- '<|im_start|>' + message.role + '\\n' + message.content }}
{%- if message.tool_calls %}{{- '<|tool_call_start|>[' }}
{%- for call in message.tool_calls %}
{{- call.function.name + '(' }}
{%- for key, value in call.function.arguments.items() %}{{- key + '=' + value | tojson
    + (', ' if not loop.last else '') }}{% endfor %}
{{- ')' + (', ' if not loop.last else '') }}
{%- endfor %}
{{- ']<|tool_call_end|>' }}{% endif %}
{{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}"""
)

# Nemotron: a reply of calls begins otherwise than the prompt ends; a list of JSON between tags of its own
REASONING_FIRST = """{%- if tools %}{{- '<|start|>system\\n' + tools | tojson + '<|end|>\\n' }}{% endif %}
{%- for message in messages %}
{{- '<|start|>' + message.role + '\\n' }}
{%- if message.role == 'assistant' and not message.tool_calls %}{{- '<think></think>' }}{% endif %}
{{- message.content or '' }}
{%- if message.tool_calls %}{{- ' </think>  <TOOLS>[' }}
{%- for call in message.tool_calls %}{{- '{"name": "' + call.function.name + '", "arguments": '
    + call.function.arguments | tojson + '}' + (', ' if not loop.last else '') }}{% endfor %}
{{- ']</TOOLS>' }}{% endif %}
{{- '<|end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start|>assistant\\n<think>\\n' }}{% endif %}"""

# the name in the mark of the call
NAMED_TAG = (
    _DESCRIBED
    + """
{%- for message in messages if message.role != 'system' %}
{{- '<|im_start|>' + message.role + '\\n' + message.content }}
{%- for call in message.tool_calls or [] %}{{- '<function=' + call.function.name + '>'
    + call.function.arguments | tojson + '</function>' }}{% endfor %}
{{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}"""
)

# LFM 2: calls as Python, with texts in quotes that are not escaped
UNESCAPED = PYTHON.replace('value | tojson', """('"' + value + '"' if value is string else value | tojson)""")

# knows no tools
PLAIN = """{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' + message.content
    + '<|im_end|>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}"""

WRITING = {
    'hermes': HERMES,
    'llama-3': LLAMA_3,
    'mistral': MISTRAL,
    'mistral-args': MISTRAL_ARGS,
    'deepseek': DEEPSEEK,
    'command': COMMAND,
    'kimi': KIMI,
    'coder': CODER,
    'glm': GLM,
    'gemma': GEMMA,
    'gpt-oss': GPT_OSS,
    'python': PYTHON,
    'reasoning-first': REASONING_FIRST,
    'named-tag': NAMED_TAG,
    'unescaped': UNESCAPED,
}
"""Templates that write calls."""

DESCRIBING = {'granite': GRANITE, 'smollm-3': SMOLLM_3}
"""Templates that describe tools, and tell in words how to call them."""

ONE_CALL = {'llama-3', 'gpt-oss'}
"""Those that take one call in a reply."""

MARKS = [
    '<|im_start|>', '<|im_end|>', '<|start_header_id|>', '<|end_header_id|>', '<|eot_id|>', '[INST]',
    '[/INST]',
    '[TOOL_CALLS]', '[ARGS]', '[AVAILABLE_TOOLS]', '[/AVAILABLE_TOOLS]', '[TOOL_RESULTS]', '[/TOOL_RESULTS]',
    '<｜User｜>', '<｜Assistant｜>', '<｜tool▁calls▁begin｜>', '<｜tool▁calls▁end｜>',
    '<｜tool▁call▁begin｜>',
    '<｜tool▁call▁end｜>', '<｜tool▁sep｜>', '<｜end▁of▁sentence｜>', '<|START_ACTION|>', '<|END_ACTION|>',
    '<|START_THINKING|>', '<|END_THINKING|>', '<|END_OF_TURN_TOKEN|>', '<|START_OF_TURN_TOKEN|>',
    '<|CHATBOT_TOKEN|>', '<|tool_call|>', '<|end_of_text|>', '<|tool_calls_section_begin|>',
    '<|tool_calls_section_end|>', '<|tool_call_begin|>', '<|tool_call_argument_begin|>', '<|tool_call_end|>',
    '<|tool_call_start|>', '<|tool_call>', '<tool_call|>', '<|"|>', '<turn|>', '<|turn>', '<|start|>',
    '<|channel|>', '<|message|>', '<|end|>', '<|call|>', '<|return|>', '<|user|>', '<|observation|>',
]  # fmt: skip
"""Special tokens of these families."""

ENDS = {
    '<|im_end|>', '<|eot_id|>', '<｜end▁of▁sentence｜>', '<|END_OF_TURN_TOKEN|>', '<|end_of_text|>',
    '<turn|>',
    '<|call|>', '<|return|>', '<|user|>', '<|observation|>',
}  # fmt: skip
"""Those that end a reply."""
