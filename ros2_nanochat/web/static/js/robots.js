// The robots at the side: their names, what they are doing, and whether their node answers.

import { byId, h, setHidden, setText } from './dom.js';

const LEVELS = ['ok', 'warn', 'bad'];

/** What a robot is doing, in words, and the colour of its dot. */
export function stateOf(robot) {
  if (!robot.present) return { text: 'not there', level: 'bad' };
  if (robot.silent) return { text: 'not answering', level: 'bad' };
  if (!robot.status) return { text: 'on the graph', level: 'ok' };
  const { level, message, values } = robot.status;
  if (level > 0) return { text: message, level: LEVELS[Math.min(level, 2)] };
  const state = values.state || message;
  return { text: state, level: /idle|ready/.test(state) ? 'ok' : 'busy' };
}

export class Robots {
  /** choose(prefix) is called when the user picks a robot. */
  constructor(choose) {
    this.choose = choose;
    this.list = byId('robots');
    this.nodes = byId('nodes');
    this.entries = new Map();
    document.addEventListener('keydown', (event) => {
      if (event.altKey && (event.key === 'ArrowDown' || event.key === 'ArrowUp')) {
        event.preventDefault();
        this.step(event.key === 'ArrowDown' ? 1 : -1);
      }
    });
  }

  show(fleet, selected) {
    this.robots = fleet.robots;
    this.selected = selected;
    const entries = new Map();
    for (const robot of fleet.robots) {
      const entry = this.entries.get(robot.prefix) ?? new Entry(robot, this.choose);
      entry.show(robot, robot.prefix === selected);
      entries.set(robot.prefix, entry);
    }
    this.entries = entries;
    this.place([...entries.values()].map((entry) => entry.element));
    this.nodes.replaceChildren(...withoutRobots(fleet).map(nodeEntry));
    setHidden(byId('no-robots'), entries.size + this.nodes.children.length > 0);
  }

  /** Puts elements into the list, in this order; those that are in their place stay untouched. */
  place(elements) {
    for (const element of [...this.list.children]) if (!elements.includes(element)) element.remove();
    elements.forEach((element, n) => {
      if (this.list.children[n] !== element) this.list.insertBefore(element, this.list.children[n] ?? null);
    });
  }

  step(by) {
    if (!this.robots?.length) return;
    const now = this.robots.findIndex((robot) => robot.prefix === this.selected);
    this.choose(this.robots[(now + by + this.robots.length) % this.robots.length].prefix);
  }
}

/** One robot. It changes in place, so that it can be pressed and focused while its state changes. */
class Entry {
  constructor(robot, choose) {
    this.name = h('bdi', { class: 'name' }, robot.name);
    this.state = h('span', { class: 'state' });
    this.button = h('button', {
      class: 'robot', type: 'button', 'data-robot': robot.prefix, title: robot.prefix, onclick: () => choose(robot.prefix),
    }, h('span', { class: 'dot', 'aria-hidden': 'true' }), this.name, this.state);
    this.element = h('li', {}, this.button);
  }

  show(robot, isSelected) {
    const state = stateOf(robot);
    this.button.dataset.level = state.level;
    if (isSelected !== this.isSelected && isSelected) this.element.scrollIntoView({ block: 'nearest', inline: 'nearest' });
    this.isSelected = isSelected;
    this.button.setAttribute('aria-current', String(isSelected));
    setText(this.state, state.text);
  }
}

/** Nodes that serve no robot at the moment, for example because their model loads. */
function withoutRobots(fleet) {
  const serving = new Set(fleet.robots.map((robot) => robot.node));
  return fleet.nodes.filter((node) => !serving.has(node.name) && !node.silent);
}

function messageOf(node) {
  return node.statuses.find((status) => status.about === 'engine')?.message || 'no robots';
}

function nodeEntry(node) {
  return h('li', { class: 'node-note' }, h('b', {}, node.name), messageOf(node));
}
