// How fast the robot answers, and what its engine holds: the newest value of each, and how it went before.

import { bars, line } from './chart.js';
import { h, setText } from './dom.js';
import { Panel } from './panel.js';
import { seconds } from './turn.js';

const MOST_SAMPLES = 120;

export class Figures {
  constructor() {
    this.panel = new Panel('figures', 'Figures');
    this.element = this.panel.element;
    this.firstToken = new Figure('Time to first token');
    this.speed = new Figure('Tokens per second');
    this.reused = new Figure('Prompt reused');
    this.queue = new Figure('Waiting turns');
    this.kv = new Figure('KV cache of the engine', 'wide');
    this.panel.body.append(...[this.firstToken, this.speed, this.reused, this.queue, this.kv].map((f) => f.element));
    this.clear();
  }

  clear() {
    this.samples = [];
    this.turns([]);
    this.showSamples();
  }

  /** Figures of ended turns, oldest first. */
  turns(turns) {
    const ran = turns.filter((turn) => turn.new_tokens > 0);
    const waits = ran.map((turn) => turn.time_to_first_token).filter(Number.isFinite);
    this.firstToken.set(waits.length ? seconds(waits.at(-1)) : '–', '', bars(waits, waits.map(seconds)));
    const rates = ran.map((turn) => turn.tokens_per_second).filter((rate) => rate > 0); // a single token has none
    this.speed.set(rates.length ? rates.at(-1).toFixed(1) : '–', '',
      bars(rates, rates.map((rate) => `${rate.toFixed(1)} tokens/s`)));
    const told = ran.filter((turn) => turn.reused_tokens >= 0 && turn.prompt_tokens > 0); // servers may not tell
    const share = (turn) => turn.reused_tokens / turn.prompt_tokens;
    const latest = told.at(-1);
    this.reused.set(latest ? `${Math.round(100 * share(latest))} %` : '–',
      latest ? `${latest.reused_tokens} of ${latest.prompt_tokens}` : '',
      bars(told.map(share), told.map((turn) => `${turn.reused_tokens} of ${turn.prompt_tokens}`)));
  }

  /** Samples of the node's diagnostics; `all` replaces those before. */
  take({ samples, all }) {
    this.samples = [...(all ? [] : this.samples), ...samples].slice(-MOST_SAMPLES);
    this.showSamples();
  }

  showSamples() {
    const last = this.samples.at(-1);
    this.kv.set(last ? last.kv.toLocaleString('en') : '–', last ? `of ${last.capacity.toLocaleString('en')} tokens` : '',
      line(this.samples.map(({ time, kv }) => [time, kv]), last?.capacity));
    this.queue.set(last ? String(last.queue) : '–', last?.active ? `${last.active} running` : '',
      line(this.samples.map(({ time, queue }) => [time, queue])));
  }
}

class Figure {
  constructor(title, kind = '') {
    this.value = h('span', {});
    this.more = h('small', {});
    this.chart = h('div', {});
    this.element = h('div', { class: `figure ${kind}` },
      h('h3', {}, title), h('p', { class: 'value' }, this.value, ' ', this.more), this.chart);
  }

  set(value, more, chart) {
    setText(this.value, value);
    setText(this.more, more);
    this.chart.replaceChildren(chart);
  }
}
