// What the robot's node says of itself, with levels.

import { h, setText } from './dom.js';
import { Panel } from './panel.js';

const LEVELS = [['OK', 'good'], ['WARN', 'warn'], ['ERROR', 'bad'], ['STALE', 'bad']];

export class DiagnosticsPanel {
  constructor() {
    this.panel = new Panel('diagnostics', 'Diagnostics');
    this.element = this.panel.element;
    this.entries = new Map();
    this.empty = h('p', { class: 'empty' }, 'The node has sent none yet.');
    this.panel.body.append(this.empty);
  }

  /** Shows the status of one robot, of its standing questions, and of its engine. */
  show(node, robot) {
    const all = node?.statuses ?? [];
    const watches = all.filter((status) => status.robot === robot?.prefix && status.about !== robot?.status?.about);
    const engine = all.find((status) => status.about === 'engine');
    const statuses = [robot?.status, ...watches, engine].filter(Boolean);
    const worst = node?.silent || !robot?.present ? 3 : Math.min(3, Math.max(0, ...statuses.map((status) => status.level)));
    this.panel.setBadge(statuses.length ? LEVELS[worst][0] : '', LEVELS[worst][1]);
    this.empty.hidden = statuses.length > 0;
    for (const [about, entry] of this.entries) {
      if (!statuses.some((status) => status.about === about)) {
        entry.element.remove();
        this.entries.delete(about);
      }
    }
    statuses.forEach((status, n) => {
      if (!this.entries.has(status.about)) this.entries.set(status.about, new Entry(status.about));
      const entry = this.entries.get(status.about);
      entry.show(status);
      const place = this.panel.body.children[n];
      if (place !== entry.element) this.panel.body.insertBefore(entry.element, place ?? null);
    });
  }
}

/** One status. It changes in place, each second, so that what is focused or selected stays so. */
class Entry {
  constructor(about) {
    this.badge = h('span', {});
    this.message = h('p', { class: 'message' });
    this.list = h('dl', {});
    this.values = new Map();
    this.element = h('div', { class: 'status' },
      h('details', {}, h('summary', {}, h('b', {}, about), ' ', this.badge), this.list), this.message);
  }

  show({ level, message, values }) {
    const [word, color] = LEVELS[Math.min(level, 3)];
    setText(this.badge, word);
    this.badge.className = `badge ${color}`;
    setText(this.message, message);
    for (const [name, [term, value]] of this.values) {
      if (!Object.hasOwn(values, name)) {
        term.remove();
        value.remove();
        this.values.delete(name);
      }
    }
    for (const [name, text] of Object.entries(values)) {
      if (!this.values.has(name)) {
        const pair = [h('dt', {}, name.replaceAll('_', ' ')), h('dd', {})];
        this.list.append(...pair);
        this.values.set(name, pair);
      }
      setText(this.values.get(name)[1], text);
    }
  }
}
