// Standing questions: the last answer of each, and how it went before.

import { bars, line } from './chart.js';
import { h, setHidden } from './dom.js';
import { Panel } from './panel.js';

const MOST = 60;

export class Watches {
  /** change(command, watch) changes a standing question. */
  constructor(change) {
    this.change = change;
    this.panel = new Panel('watches', 'Standing questions');
    this.element = this.panel.element;
    this.list = h('div', {});
    this.panel.body.append(this.list, this.adding());
    this.clear();
  }

  clear() {
    this.watches = [];
    this.seen = new Map();
    this.draw();
  }

  /** Shows the panel if the robot takes standing questions. */
  show(available) {
    setHidden(this.element, !available && !this.watches.length);
  }

  take({ watches }) {
    this.watches = watches;
    this.draw();
  }

  observe({ observations, all }) {
    if (all) this.seen.clear();
    for (const each of observations) {
      const before = this.seen.get(each.name) ?? [];
      this.seen.set(each.name, [...before, each].slice(-MOST));
    }
    this.draw();
  }

  draw() {
    const focused = this.list.contains(document.activeElement) ? document.activeElement.dataset.key : null;
    this.panel.setBadge(this.watches.length ? String(this.watches.length) : '');
    this.list.replaceChildren(...(this.watches.length
      ? this.watches.map((watch) => this.entry(watch))
      : [h('p', { class: 'empty' }, 'None. The robot can ask itself a question about its camera again and again.')]));
    if (focused) this.list.querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus();
  }

  entry(watch) {
    const seen = this.seen.get(watch.name) ?? [];
    const last = seen.at(-1);
    const paused = watch.state === 'paused';
    const button = (text, command) => h('button', {
      class: 'quiet', type: 'button', 'data-key': `${command} ${watch.name}`, onclick: () => this.change(command, watch),
    }, text);
    return h('section', { class: 'watch', 'data-watch': watch.name, 'aria-label': watch.question },
      h('p', { class: 'asked' }, watch.question, ' ',
        watch.state !== 'watching' && h('span', { class: 'badge warn', title: watch.note }, watch.state)),
      last && h('p', { class: 'last' }, h('b', {}, shown(last)), h('span', {}, about(last))),
      seen.length > 0 && chart(seen),
      watch.note && h('p', { class: 'remark' }, watch.note),
      h('div', { class: 'controls' }, button(paused ? 'Resume' : 'Pause', paused ? 'resume' : 'pause'), button('Remove', 'remove')));
  }

  adding() {
    const question = h('input', { placeholder: 'Ask again and again', 'aria-label': 'Standing question', maxlength: '5000' });
    const form = h('input', { placeholder: 'yes | no', 'aria-label': 'Form of the answer', maxlength: '20000' });
    return h('form', {
      class: 'add-watch',
      onsubmit: async (event) => {
        event.preventDefault();
        const asked = { name: '', question: question.value.trim(), response_format: form.value.trim(), max_rate: 1 };
        if (asked.question && await this.change('add', asked)) question.value = form.value = '';
      },
    }, question, form, h('button', { type: 'submit' }, 'Add'));
  }
}

function shown({ value, text, valid }) {
  if (!valid && !text) return 'no answer';
  try {
    const parsed = JSON.parse(value);
    return typeof parsed === 'string' ? parsed : JSON.stringify(parsed);
  } catch {
    return text;
  }
}

function about({ probability, unchanged, in_a_row: row, valid }) {
  const parts = [];
  if (probability > 0) parts.push(`${Math.round(100 * probability)} %`);
  if (row > 1) parts.push(`${row} in a row`);
  if (unchanged) parts.push('same picture');
  if (!valid) parts.push('not complete');
  return parts.join(', ');
}

/** Numbers as a line; other answers as bars, one height for each. */
function chart(seen) {
  if (seen.every(({ number }) => number !== null)) return line(seen.map(({ time, number }) => [time, number]));
  const answers = [...new Set(seen.map(shown))].sort();
  return bars(seen.map((each) => answers.indexOf(shown(each)) + 1), seen.map(shown), MOST);
}
