// One turn: question, pictures, reasoning, tool calls, answer, figures.

import { Calls } from './calls.js';
import { copyText } from './copy.js';
import { h, setHidden, setText } from './dom.js';

export class Turn {
  /** actions.approve(call, yes, reason) answers for a tool. */
  constructor(item, actions) {
    this.pictures = h('div', { class: 'pictures', hidden: true });
    this.query = h('p', { class: 'text', dir: 'auto' });
    this.reasoningText = h('p', { class: 'text', dir: 'auto' });
    this.reasoning = h('details', { class: 'reasoning', hidden: true },
      h('summary', {}, 'Reasoning'), this.reasoningText);
    this.calls = new Calls(actions);
    this.text = h('p', { class: 'text', dir: 'auto' });
    this.waits = h('p', { class: 'waits' }, 'waiting for the model');
    this.remarks = h('div', {});
    this.answer = h('div', { class: 'answer' },
      this.reasoning, this.calls.element, this.text, this.waits, this.remarks);
    this.footer = h('footer', {});
    this.element = h('article', { class: 'turn', 'data-key': item.key },
      h('div', { class: 'question' }, this.pictures, this.query), this.answer, this.footer);
    this.began = null;
    this.tokens = 0;
    this.update(item);
  }

  get isLive() {
    return this.item.state === 'asked' || this.item.state === 'streaming';
  }

  update(item) {
    this.item = item;
    this.element.dataset.state = item.state;
    setText(this.query, item.query || (this.isLive ? 'a question from another client' : ''));
    this.query.classList.toggle('unknown', !item.query);
    setHidden(this.query.parentElement, !item.query && !this.isLive && !item.pictures.length);
    this.showPictures(item.pictures);
    if (item.turn?.tool_calls?.length) this.calls.show(item.turn.tool_calls);
    this.showText();
    this.showRemarks();
    this.showFigures();
  }

  /** A piece of the reply; `text` or `reasoning`. */
  piece({ text = '', reasoning = '', tokens = 0 }) {
    this.item.text += text;
    this.item.reasoning += reasoning;
    this.began ??= performance.now();
    this.tokens += tokens;
    this.showText();
    this.showFigures();
  }

  showCalls(calls) {
    this.calls.show(calls);
    this.showText();
  }

  showText() {
    const { item } = this;
    appendText(this.text, item.text);
    appendText(this.reasoningText, item.reasoning);
    setHidden(this.reasoning, !item.reasoning);
    setHidden(this.text, !item.text);
    setHidden(this.waits, !(this.isLive && !item.text));
    setText(this.waits, item.reasoning ? 'thinking' : item.state === 'asked' ? 'waiting for the model' : '…');
    this.answer.classList.toggle('streaming', item.state === 'streaming' && Boolean(item.text));
    this.answer.classList.toggle('formed', Boolean(item.turn?.valid));
    const empty = !item.text && !item.reasoning && !this.isLive && this.calls.isEmpty;
    setHidden(this.answer, empty && !item.turn?.error && !item.turn?.note && !item.error);
  }

  showRemarks() {
    const { turn, error } = this.item;
    const lines = [[error || turn?.error, 'remark error'], [turn?.note, 'remark']];
    this.remarks.replaceChildren(
      ...lines.filter(([text]) => text).map(([text, kind]) => h('p', { class: kind, dir: 'auto' }, text)));
  }

  showPictures(pictures) {
    const names = JSON.stringify(pictures);
    if (names === this.shownPictures) return;
    this.shownPictures = names;
    setHidden(this.pictures, !pictures.length);
    this.pictures.replaceChildren(...pictures.map(({ name, note }) => {
      if (!name) return h('figure', {}, h('figcaption', { class: 'gone' }, note));
      const image = h('img', { src: `/pictures/${encodeURIComponent(name)}`, alt: note, loading: 'lazy' });
      return h('figure', {}, image, h('figcaption', {}, note));
    }));
  }

  showFigures() {
    const { turn, state } = this.item;
    if (turn) {
      this.footer.replaceChildren(...figures(turn), h('button', {
        class: 'quiet', type: 'button', title: 'Copy this turn as JSON', onclick: (event) => this.copy(event.target),
      }, 'Copy JSON'));
    } else if (state === 'streaming' && this.began !== null) {
      const seconds = (performance.now() - this.began) / 1000;
      const rate = seconds > 0.5 ? `, ${(this.tokens / seconds).toFixed(1)} tokens/s` : '';
      this.footer.replaceChildren(h('span', { class: 'live' }, `${this.tokens} tokens${rate}`));
    } else {
      this.footer.replaceChildren();
    }
  }

  async copy(button) {
    const { query, text, reasoning, turn, pictures } = this.item;
    const whole = { query, reply: text, reasoning, pictures: pictures.map(({ note }) => note), ...turn };
    const done = await copyText(JSON.stringify(whole, null, 2));
    setText(button, done ? 'Copied' : 'Not allowed by the browser');
    setTimeout(() => setText(button, 'Copy JSON'), 1500);
  }
}

/** Appends what is new of a text that usually only grows: a long reply is not laid out again for each piece. */
function appendText(element, text) {
  const node = element.firstChild;
  if (node && text.startsWith(node.data)) node.appendData(text.slice(node.data.length));
  else element.textContent = text;
}

function figures(turn) {
  const parts = [];
  const reason = turn.finish_reason;
  if (reason !== 'stop') {
    const bad = reason === 'error' || reason === 'refused';
    parts.push(h('span', { class: `badge ${bad ? 'bad' : 'warn'}` }, reason));
  }
  if (turn.valid) parts.push(h('span', { class: 'badge good' }, 'valid'));
  if (turn.choice) parts.push(h('span', { class: 'choice' }, h('bdi', {}, turn.choice),
    Number.isFinite(turn.probability) && `: ${(100 * turn.probability).toFixed(0)} %`));
  if (turn.time_to_first_token > 0) parts.push(h('span', {}, `first token ${seconds(turn.time_to_first_token)}`));
  if (turn.tokens_per_second > 0) parts.push(h('span', {}, `${turn.tokens_per_second.toFixed(1)} tokens/s`));
  if (turn.new_tokens) parts.push(h('span', {}, turn.new_tokens === 1 ? '1 token' : `${turn.new_tokens} tokens`));
  if (turn.prompt_tokens) {
    parts.push(h('span', { title: 'Tokens of the prompt whose KV was kept, of all' },
      turn.reused_tokens < 0 ? `${turn.prompt_tokens} of the prompt` : `reused ${turn.reused_tokens} of ${turn.prompt_tokens}`));
  }
  if (turn.dropped_turns) parts.push(h('span', {}, `${turn.dropped_turns} oldest turns dropped`));
  return parts;
}

export function seconds(value) {
  return value < 1 ? `${Math.round(1000 * value)} ms` : `${value.toFixed(1)} s`;
}
