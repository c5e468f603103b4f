// Standing questions: the last answer of each, and how it went before.

import { lanes, line } from './chart.js';
import { h, setHidden, setText } from './dom.js';
import { Panel } from './panel.js';

const MOST = 60;
const PAUSE = 100; // milliseconds between two drawings

export class Watches {
  /** change(command, watch) changes a standing question. */
  constructor(change) {
    this.change = change;
    this.panel = new Panel('watches', 'Standing questions');
    this.element = this.panel.element;
    this.list = h('div', {});
    this.empty = h('p', { class: 'empty' }, 'None. The robot can ask itself a question about its camera again and again.');
    this.cameras = h('select', { 'aria-label': 'Which camera', hidden: true });
    this.names = [];
    this.panel.body.append(this.empty, this.list, this.adding());
    this.clear();
  }

  clear() {
    this.watches = [];
    this.seen = new Map();
    this.entries = new Map();
    this.list.replaceChildren();
    this.draw();
  }

  /** Shows the panel if the robot takes standing questions; cameras: the names of its cameras. */
  show(available, cameras) {
    setHidden(this.element, !available && !this.watches.length);
    if (cameras.join('\n') === this.names.join('\n')) return;
    this.names = cameras;
    const choices = cameras.map((name) => [name, name]);
    if (cameras.length > 1) choices.push(['', 'all together']);
    this.cameras.replaceChildren(...choices.map(([value, name]) => h('option', { value }, name)));
    setHidden(this.cameras, choices.length < 2);
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
    // Several questions may be answered often: what comes together is drawn together.
    this.drawing ??= setTimeout(() => this.draw(), PAUSE);
  }

  draw() {
    clearTimeout(this.drawing);
    this.drawing = null;
    this.panel.setBadge(this.watches.length ? String(this.watches.length) : '');
    setHidden(this.empty, this.watches.length > 0);
    const names = new Set(this.watches.map((watch) => watch.name));
    for (const [name, entry] of this.entries) {
      if (names.has(name)) continue;
      entry.element.remove();
      this.entries.delete(name);
    }
    for (const watch of this.watches) {
      if (!this.entries.has(watch.name)) {
        const entry = new Entry(this.change);
        this.entries.set(watch.name, entry);
        this.list.append(entry.element);
      }
      this.entries.get(watch.name).show(watch, this.seen.get(watch.name) ?? []);
    }
  }

  adding() {
    const question = h('input', { placeholder: 'Ask again and again', 'aria-label': 'Standing question', maxlength: '5000' });
    const form = h('input', { placeholder: 'Answer: yes | no', 'aria-label': 'Form of the answer', maxlength: '20000' });
    return h('form', {
      class: 'add-watch',
      onsubmit: async (event) => {
        event.preventDefault();
        const cameras = this.cameras.hidden ? [] : this.cameras.value === '' ? this.names : [this.cameras.value];
        const asked = {
          name: '', question: question.value.trim(), response_format: form.value.trim(), max_rate: 1, cameras,
        };
        if (asked.question && await this.change('add', asked)) question.value = form.value = '';
      },
    }, question, form, this.cameras, h('button', { type: 'submit' }, 'Add'));
  }
}

/** One standing question. It changes in place, so that its buttons can be pressed while answers come. */
class Entry {
  constructor(change) {
    const button = (command) => h('button', {
      class: 'quiet', type: 'button', onclick: () => change(command(), this.watch),
    });
    this.question = h('span', { dir: 'auto' });
    this.cameras = h('span', { class: 'badge' });
    this.state = h('span', { class: 'badge warn' });
    this.value = h('b', { dir: 'auto' });
    this.about = h('span', {});
    this.last = h('p', { class: 'last' }, this.value, this.about);
    this.chart = h('div', {});
    this.note = h('p', { class: 'remark' });
    this.pause = button(() => (this.isPaused ? 'resume' : 'pause'));
    this.remove = button(() => 'remove');
    setText(this.remove, 'Remove');
    this.element = h('section', { class: 'watch' },
      h('p', { class: 'asked' }, this.question, ' ', this.cameras, ' ', this.state),
      this.last, this.chart, this.note, h('div', { class: 'controls' }, this.pause, this.remove));
  }

  get isPaused() {
    return this.watch.state === 'paused';
  }

  show(watch, seen) {
    this.watch = watch;
    const last = seen.at(-1);
    this.element.dataset.watch = watch.name;
    this.element.setAttribute('aria-label', watch.question);
    setText(this.question, watch.question);
    setText(this.cameras, watch.cameras.join(', '));
    setHidden(this.cameras, watch.cameras.join() === 'image' || !watch.cameras.length);
    setText(this.state, watch.state);
    setHidden(this.state, watch.state === 'watching');
    setHidden(this.last, !last);
    if (last) {
      setText(this.value, shown(last));
      setText(this.about, about(last));
    }
    setText(this.note, watch.note);
    setHidden(this.note, !watch.note);
    setText(this.pause, this.isPaused ? 'Resume' : 'Pause');
    this.pause.setAttribute('aria-label', `${this.pause.textContent}: ${watch.question}`);
    this.remove.setAttribute('aria-label', `Remove: ${watch.question}`);
    if (seen !== this.drawn) this.chart.replaceChildren(...(seen.length ? [chart(seen)] : []));
    this.drawn = seen;
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

/** Numbers as a line; of other answers, each in a lane of its own. */
function chart(seen) {
  const isNumber = seen.every(({ number }) => number !== null);
  return isNumber ? line(seen.map(({ time, number }) => [time, number])) : lanes(seen.map(shown), MOST);
}
