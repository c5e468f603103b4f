// The robots at the side: their names, what they are doing, and whether their node answers.

import { byId, h, setHidden } from './dom.js';

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
    this.shown = '';
    document.addEventListener('keydown', (event) => {
      if (event.altKey && (event.key === 'ArrowDown' || event.key === 'ArrowUp')) {
        event.preventDefault();
        this.step(event.key === 'ArrowDown' ? 1 : -1);
      }
    });
  }

  show(fleet, selected) {
    const states = fleet.robots.map((robot) => [robot.prefix, stateOf(robot)]);
    const content = JSON.stringify([states, withoutRobots(fleet).map(messageOf), selected]);
    if (content === this.shown) return;
    this.shown = content;
    this.robots = fleet.robots;
    this.selected = selected;
    const focused = document.activeElement?.dataset?.robot;
    const others = withoutRobots(fleet);
    this.list.replaceChildren(
      ...fleet.robots.map((robot) => this.entry(robot)),
      ...others.map((node) => nodeEntry(node)),
    );
    if (focused) this.list.querySelector(`[data-robot="${CSS.escape(focused)}"]`)?.focus();
    setHidden(byId('no-robots'), this.list.children.length > 0);
  }

  entry(robot) {
    const state = stateOf(robot);
    return h('li', {},
      h('button', {
        class: 'robot', 'data-level': state.level, 'data-robot': robot.prefix, title: robot.prefix,
        'aria-current': String(robot.prefix === this.selected),
        onclick: () => this.choose(robot.prefix),
      },
      h('span', { class: 'dot', 'aria-hidden': 'true' }),
      h('span', { class: 'name' }, robot.name),
      h('span', { class: 'state' }, state.text)));
  }

  step(by) {
    if (!this.robots?.length) return;
    const now = this.robots.findIndex((robot) => robot.prefix === this.selected);
    this.choose(this.robots[(now + by + this.robots.length) % this.robots.length].prefix);
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
