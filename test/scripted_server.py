"""A small server with OpenAI's API that does what a test tells it: answers, and every way to break.

It speaks HTTP/1.1 on 127.0.0.1 in a thread of its own. Its replies are words that follow from the prompt.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import random
import threading

MODEL = 'scripted'
IDLE_SECONDS = 5.0


class ScriptedServer:
    """One server.

    Args:
        port: Where it listens; 0 chooses a free port.
        kind: `vllm` (takes ids and priorities) or `plain` (only messages).
        delay: Seconds between two words of a reply.
        words: Words of a reply to messages: `You said: ` and the last message, then numbers up to this many.
        context: Tokens that it says it holds.
        key: The key that it asks for, or None.
        ssl: Context for TLS, or None.

    Attributes:
        story: What it writes after ids that end with the beginning of a reply; a NUL is id 0, without text.
        not_ready: Requests that are answered as while the model is loaded.
        lists_models: Whether it has the address of the models.
        models_fail: Whether asking for the models fails.
        models_twice: Whether the model is listed twice.
        faults: What the next replies do instead of answering, in order: a name, see `_stream`; bytes that are
            written as they are; or a function that is called with the writer.
        requests: `(headers, body)` of all requests for replies.
        kept: Pictures that it knows by their `uuid`; None if it keeps none.
        name: The model's name.
        shift: What it adds to a byte for its id, when asked to tokenize.
        owner: Who it says owns the model; `kind` if empty.
        samples: Whether it has the options of vLLM, and refuses what is none of their values.
        replicas: Servers behind it that take turns and remember prompts each for itself.
        block: Tokens that it says to reuse together, of a prompt that it has had before; 0 for none.
        keeps_connections: Whether a connection can be used again after a reply.
        open_streams: Replies that are being written.
        most_open: The most that were at once.
    """

    def __init__(self, port=0, kind='plain', delay=0.0, words=8, context=4096, key=None, ssl=None):
        self.kind, self.delay, self.words, self.context, self.key, self._ssl = (
            kind,
            delay,
            words,
            context,
            key,
            ssl,
        )
        self.faults: list = []
        self.always: str | None = None
        self.requests: list = []
        self.open_streams = self.most_open = self.dropped = 0
        self.follows_forms = True
        self.samples = False
        self.story = ''
        self.not_ready = 0
        self.models_twice = False
        self.lists_models = True
        self.models_fail = False
        self.sees = False
        self.kept: set | None = None
        self.block = 0
        self.owner, self.replicas, self._turn = '', 1, 0
        self.name, self.shift = MODEL, 3
        self._had: set = set()
        self.one_at_a_time = self.keeps_connections = False
        self.port = port
        self.start()

    def start(self):
        """Listen (again)."""
        self._loop = asyncio.new_event_loop()
        started = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(started,), daemon=True)
        self._thread.start()
        assert started.wait(10)

    def _run(self, started):
        asyncio.set_event_loop(self._loop)
        self._server = self._loop.run_until_complete(
            asyncio.start_server(self._client, '127.0.0.1', self.port, ssl=self._ssl)
        )
        self.port = self._server.sockets[0].getsockname()[1]
        started.set()
        self._loop.run_forever()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        with contextlib.suppress(Exception):
            self._loop.run_until_complete(asyncio.sleep(0.01))
        self._loop.close()

    def stop(self):
        """Stop at once: all connections break."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._abort)
            self._thread.join(10)

    def _abort(self):
        self._server.close()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.call_later(0.02, self._loop.stop)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    @property
    def url(self):
        return f'{"https" if self._ssl else "http"}://127.0.0.1:{self.port}/v1'

    # --- HTTP ---

    async def _client(self, reader, writer):
        try:
            while await self._request(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            with contextlib.suppress(Exception):
                writer.transport.abort()

    async def _request(self, reader, writer):
        line = await reader.readline()
        if not line:
            return False
        method, path, _ = line.decode().split(' ', 2)
        headers = {}
        while (line := await reader.readline()).strip():
            name, _, value = line.decode().partition(':')
            headers[name.strip().lower()] = value.strip()
        body = json.loads(await reader.readexactly(int(headers.get('content-length', 0))) or b'null')
        if self.key is not None and headers.get('authorization') != f'Bearer {self.key}':
            return self._answer(writer, 401, {'error': {'message': 'Invalid API key'}})
        if self.not_ready:  # as llama.cpp's server while it loads its model
            self.not_ready -= 1
            return self._answer(writer, 503, {'error': {'message': 'Loading model', 'code': 503}})
        if method == 'GET':
            return self._get(writer, path)
        self.requests.append((headers, body))
        fault = self.always or (self.faults.pop(0) if self.faults and body.get('stream') else None)
        if path == '/tokenize' and self.kind == 'vllm':
            return self._answer(writer, 200, {'tokens': [b + self.shift for b in body['prompt'].encode()]})
        known = ('/v1/completions', '/v1/chat/completions')
        if path not in known or (path == '/v1/completions' and self.kind != 'vllm'):
            return self._answer(writer, 404, {'detail': 'Not Found'})
        if fault is not None and self._refuse(writer, fault):
            return True
        if not self._knows_pictures(body):
            error = {'message': 'Cache miss for image at index 0 but data is not provided.', 'code': 400}
            return self._answer(writer, 400, {'error': error})
        if not body.get('stream'):
            numbers = ('priority', 'repetition_penalty', 'min_tokens')
            if self.samples and any(isinstance(body.get(name), str) for name in numbers):
                return self._answer(writer, 400, {'error': {'message': 'Input should be a number'}})
            return self._answer(writer, 200, self._whole(body))
        if self.one_at_a_time and self.open_streams:
            return self._answer(writer, 503, {'error': 'busy'}, ['Retry-After: 0.1'])
        return await self._stream(reader, writer, body, fault)

    def _get(self, writer, path):
        if path == '/v1/models' and self.models_fail:  # as behind a router, of a worker that is gone
            return self._answer(writer, 500, {'error': {'message': 'error sending request'}})
        if path == '/v1/models' and self.lists_models:
            entry = {'id': self.name, 'owned_by': self.owner or self.kind, 'max_model_len': self.context}
            return self._answer(writer, 200, {'object': 'list', 'data': [entry] * (1 + self.models_twice)})
        return self._answer(writer, 404, {'detail': 'Not Found'})

    def _answer(self, writer, status, data, headers=(), kind='application/json'):
        content = data if isinstance(data, bytes) else json.dumps(data).encode()
        lines = [f'HTTP/1.1 {status} X', f'Content-Type: {kind}', f'Content-Length: {len(content)}', *headers]
        writer.write('\r\n'.join(lines).encode() + b'\r\n\r\n' + content)
        return True

    def _refuse(self, writer, fault):
        if fault == '401':
            return self._answer(writer, 401, {'error': {'message': 'Invalid API key'}})
        if fault == '404':
            return self._answer(writer, 404, {'error': {'message': 'The model `x` does not exist.'}})
        if fault == '429':
            return self._answer(writer, 429, {'error': 'too many'}, ['Retry-After: 0.2'])
        if fault == '500':
            return self._answer(writer, 500, {'error': {'message': 'out of memory'}})
        if fault == 'html':
            page = b'<html><head><title>502 Bad Gateway</title></head></html>'
            return self._answer(writer, 502, page, kind='text/html')
        if fault == 'redirect':
            return self._answer(writer, 307, b'', ['Location: http://198.51.100.7/v1/chat/completions'])
        return False

    # --- replies ---

    def _pieces(self, body):
        """`(text, ids)` of the reply, piece by piece."""
        if 'messages' in body:
            said = body['messages'][-1]['content']
            said = said if isinstance(said, str) else ' '.join(p.get('text', '') for p in said)
            words = ['You', ' said:', *[f' {word}' for word in said.split()]]
            words += [f' {n}' for n in range(len(words), self.words)]
            return [(word, None) for word in words]
        prompt = ''.join(chr(i - 3) if i >= 3 else f'<{i}>' for i in body['prompt'])
        story = self.story or ''.join(f'word {n}, ' for n in range(self.words))
        done = len(prompt.rpartition('<2>')[2])
        pieces = [(char, [ord(char) + 3]) if char != '\0' else ('', [0]) for char in story[done:]]
        return [*pieces, ('', [1])]

    def _knows_pictures(self, body):
        contents = [message['content'] for message in body.get('messages', ())]
        parts = [part for content in contents if isinstance(content, list) for part in content]
        for part in parts:
            if part['type'] == 'image_url' and part['image_url']:
                if self.kept is not None:
                    self.kept.add(part.get('uuid'))
            elif part['type'] == 'image_url' and part.get('uuid') not in (self.kept or ()):
                return False
        return True

    def _num_prompt(self, body):
        return 20 + 256 * (self.sees and 'image_url' in json.dumps(body.get('messages', '')))

    def _formed(self, body):
        asked = body.get('structured_outputs') or {}
        if not self.follows_forms or not asked:
            return None
        if 'choice' in asked:
            return asked['choice'][0]
        if 'json' in asked:
            names = asked['json'].get('required') or []
            return json.dumps(dict.fromkeys(names, True))
        return 'zq7x1'

    def _whole(self, body):
        pieces = self._pieces(body)[: body.get('max_tokens', 100)]
        text = self._formed(body) or ''.join(text for text, _ in pieces)
        is_greedy = body.get('top_k') == 1 or body.get('top_p', 1) < 0.01 or body.get('min_p') == 1
        if self.samples and body.get('temperature') and not is_greedy:
            text = f'{body.get("seed") or random.random()}'
        choice = {'index': 0, 'finish_reason': 'length', 'text': text, 'message': {'content': text}}
        if 'prompt' in body and body.get('return_token_ids'):
            choice['token_ids'] = [i for _, ids in pieces for i in ids or []]
        usage = {'prompt_tokens': self._num_prompt(body), 'completion_tokens': len(pieces)}
        if self.block and 'prompt' in body:
            self._turn += 1
            prompt = (self._turn % self.replicas, *body['prompt'])
            if prompt in self._had:  # as vLLM, which writes no figures of 0
                cached = (len(prompt) - 1) // self.block * self.block
                usage['prompt_tokens_details'] = {'cached_tokens': cached}
            self._had.add(prompt)
        return {'choices': [choice], 'usage': usage}

    def _event(self, body, text, ids, finish=None):
        choice = {'index': 0, 'finish_reason': finish}
        if 'messages' in body:
            choice['delta'] = {'content': text}
        else:
            choice.update(text=text, token_ids=ids)
        return {'choices': [choice]}

    async def _stream(self, reader, writer, body, fault):
        if isinstance(fault, bytes) or callable(fault):
            if isinstance(fault, bytes):
                writer.write(fault)
            else:
                await fault(writer)
            await writer.drain()
            writer.close()
            return False
        if fault == 'silent':
            await asyncio.sleep(60)
        if fault == 'reset':
            writer.transport.abort()
            return False
        if fault == 'closed':
            writer.close()
            return False
        if fault == 'garbage':
            writer.write(b'SSH-2.0-OpenSSH_9.9\r\n')
            await writer.drain()
            writer.close()
            return False
        if fault == 'slow_headers':
            writer.write(b'HTTP/1.1 200 OK\r\nX-Slow: ')
            while not writer.transport.is_closing():
                writer.write(b'x')
                await asyncio.sleep(0.02)
        if fault == 'json_body':
            whole = self._whole(body)
            whole['choices'][0]['finish_reason'] = 'stop'
            return self._answer(writer, 200, whole)
        if fault == 'error_body':
            return self._answer(writer, 200, {'error': {'message': 'no memory', 'code': 500}})
        writer.write(
            b'HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n'
        )
        self.open_streams += 1
        self.most_open = max(self.most_open, self.open_streams)
        gone = asyncio.ensure_future(reader.read(1))  # ends when the client leaves
        try:
            ended = await self._write(writer, body, fault, gone)
        finally:
            self.open_streams -= 1
            if gone.done():
                self.dropped += 1
            gone.cancel()
        if not ended:
            writer.transport.abort()
            return False
        writer.write(b'0\r\n\r\n')
        await writer.drain()
        if self.keeps_connections and not gone.done():
            await asyncio.wait({gone})  # only then may another read begin
            return gone.cancelled()
        writer.close()
        return False

    async def _write(self, writer, body, fault, gone):
        end = b'\r\n' if fault == 'crlf' else b'\n'

        def chunk(data):
            for part in [data[n : n + 1] for n in range(len(data))] if fault == 'bytes' else [data]:
                writer.write(f'{len(part):x}\r\n'.encode() + part + b'\r\n')

        def send(event):
            data = (
                event
                if isinstance(event, bytes)
                else json.dumps(event, ensure_ascii=fault != 'bytes').encode()
            )
            if fault in ('comments', 'crlf'):
                chunk(b': keep-alive' + end + end + b'event: message' + end + b'id: 7' + end)
            chunk(b'data: ' + data + end + end)

        async def ping():
            while not gone.done():
                chunk(b': ping\n\n')
                await asyncio.wait({gone}, timeout=0.02)

        if fault == 'ping_first':
            await ping()
            return False
        if fault == 'usage':
            send({'choices': [], 'usage': {'prompt_tokens': 20, 'completion_tokens': 0}})
        pieces = self._pieces(body)
        if formed := self._formed(body):
            pieces = [(char, [ord(char) + 3]) for char in formed] + [('', [1])]
        limit = 10**9 if fault == 'endless' else body.get('max_tokens', 1000)
        if fault == 'endless':
            pieces = itertools.chain(pieces[:-1], itertools.cycle([(' and', [100]), (' so', [101])]))
            pieces = list(itertools.islice(pieces, 100_000))
        finish = 'length' if len(pieces) > limit else 'stop'
        for number, (text, ids) in enumerate(pieces[:limit]):
            if self.delay:
                await asyncio.wait({gone}, timeout=self.delay)
            if gone.done():
                return False
            if fault and number == 2:
                if fault == 'ping':
                    await ping()
                    return False
                if fault == 'empty':
                    for choices in ([], None, [None], [{}], [{'index': 1, 'delta': {'content': 'other'}}]):
                        send({'choices': choices, 'usage': None})
                    for delta in (None, {}, {'content': None}, {'role': 'assistant', 'content': ''}):
                        send({'choices': [{'index': 0, 'delta': delta, 'finish_reason': None}]})
                if fault == 'bad_utf8':
                    send(b'{"choices": [{"delta": {"content": "\xff\xfe"}}]}')
                if fault == 'odd_finish':
                    send({'choices': [{'delta': {}, 'finish_reason': 'content_filter'}]})
                if fault == 'cut':
                    return False
                if fault == 'half_line':
                    chunk(b'data: {"choices": [{"del')
                    return True
                if fault == 'wrong_json':
                    send(b'{"choices": [}')
                if fault == 'not_object':
                    send(b'[1, 2]')
                if fault == 'error_event':
                    send({'error': {'message': 'the engine died', 'code': 500}})
                    send(b'[DONE]')
                    return True
                if fault == 'no_finish':
                    send(b'[DONE]')
                    return True
                if fault == 'end':
                    return True
                if fault == 'pause':
                    await asyncio.wait({gone}, timeout=30)
                if fault == 'huge':
                    for _ in range(200):
                        chunk(b'data: ' + b'x' * (1 << 20))
                        await writer.drain()
                        if gone.done():
                            return False
            event = self._event(body, text, ids)
            if fault == 'usage':
                event['usage'] = {'prompt_tokens': 20, 'completion_tokens': number, 'total_tokens': 'many'}
            if fault == 'parts':
                event['choices'][0]['delta']['content'] = [{'type': 'text', 'text': text}, {'type': 'other'}]
            if fault == 'halves':
                for char in text:
                    half = char.encode('utf-16-le')
                    for n in range(0, len(half), 2):
                        event['choices'][0]['delta']['content'] = half[n : n + 2].decode(
                            'utf-16-le', 'surrogatepass'
                        )
                        send(event)
            else:
                send(event)
            await writer.drain()
        send(self._event(body, '', [], finish))
        if (body.get('stream_options') or {}).get('include_usage'):
            usage = {'prompt_tokens': self._num_prompt(body), 'completion_tokens': min(len(pieces), limit)}
            send({'choices': [], 'usage': usage})
        send(b'[DONE]')
        if fault == 'after_done':
            send(self._event(body, 'late', []))
            send(b'[DONE]')
        return True
