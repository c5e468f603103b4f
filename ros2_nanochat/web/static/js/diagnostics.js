// What the robot's node says of itself, with levels.

import { h } from './dom.js';
import { Panel } from './panel.js';

const LEVELS = [['OK', 'good'], ['WARN', 'warn'], ['ERROR', 'bad'], ['STALE', 'bad']];

export class DiagnosticsPanel {
  constructor() {
    this.panel = new Panel('diagnostics', 'Diagnostics');
    this.element = this.panel.element;
    this.open = new Set();
  }

  /** Shows the engine's status and that of one robot. */
  show(node, robot) {
    const statuses = [robot?.status, ...(node?.statuses.filter((status) => status.about === 'engine') ?? [])];
    const known = statuses.filter(Boolean);
    const worst = node?.silent ? 3 : Math.max(0, ...known.map((status) => status.level));
    this.panel.setBadge(known.length ? LEVELS[worst][0] : '', LEVELS[worst][1]);
    const content = JSON.stringify([known, node?.silent]);
    if (content === this.shown) return;
    this.shown = content;
    this.panel.body.replaceChildren(...(known.length
      ? known.map((status) => this.entry(status))
      : [h('p', { class: 'empty' }, 'The node has sent none yet.')]));
  }

  entry(status) {
    const [word, level] = LEVELS[Math.min(status.level, 3)];
    const details = h('details', { open: this.open.has(status.about) },
      h('summary', {}, h('b', {}, status.about), ' ', h('span', { class: `badge ${level}` }, word)),
      h('dl', {}, ...Object.entries(status.values).flatMap(([name, value]) => [
        h('dt', {}, name.replaceAll('_', ' ')), h('dd', {}, value)])));
    details.addEventListener('toggle', () => {
      if (details.open) this.open.add(status.about);
      else this.open.delete(status.about);
    });
    return h('div', { class: 'status' }, details, h('p', { class: 'message' }, status.message));
  }
}
