// The conversation of one robot: a list of turns that grows at the end.

import { byId, h, setHidden } from './dom.js';
import { Turn } from './turn.js';

const NEAR_THE_END = 80;

export class Conversation {
  /** actions: what turns can ask for, see turn.js. */
  constructor(actions) {
    this.actions = actions;
    this.log = byId('log');
    this.turns = new Map();
    this.calls = new Map(); // of each turn, by id
    this.follows = true;
    const button = byId('to-end');
    this.list = h('div', {});
    this.log.append(this.list);
    let before = 0;
    this.log.addEventListener('scroll', () => {
      const { scrollHeight, scrollTop, clientHeight } = this.log;
      // Only the user scrolls up; what grows below, such as a picture that loads, must not stop us.
      if (scrollHeight - scrollTop - clientHeight < NEAR_THE_END) this.follows = true;
      else if (scrollTop < before - 1) this.follows = false;
      before = scrollTop;
      setHidden(button, this.follows);
    });
    button.addEventListener('click', () => this.toEnd());
    const resized = new ResizeObserver(() => this.follow());
    resized.observe(this.log);
    resized.observe(this.list);
  }

  /** Replaces everything. */
  replace(event) {
    this.turns.clear();
    this.list.replaceChildren(systemPrompt(event.system) || '');
    for (const item of event.items) this.add(item);
    if (!event.items.length) this.list.append(hint());
    this.toEnd();
  }

  clear() {
    this.turns.clear();
    this.calls.clear();
    this.list.replaceChildren();
  }

  item(item) {
    const turn = this.turns.get(item.key);
    if (turn) turn.update(item);
    else this.add(item);
    this.follow();
  }

  piece(event) {
    this.turns.get(event.key)?.piece(event);
    this.follow();
  }

  /** Tool calls, each shown in its turn, which may come later. */
  takeCalls(calls) {
    for (const call of calls) {
      const known = this.calls.get(call.turn_id) ?? new Map();
      this.calls.set(call.turn_id, known.set(call.id, call));
      this.turns.get(call.turn_id)?.showCalls([call]);
    }
    this.follow();
  }

  add(item) {
    this.log.querySelector('.hint')?.remove();
    const turn = new Turn(item, this.actions);
    turn.showCalls([...(this.calls.get(item.key)?.values() ?? [])]);
    this.turns.set(item.key, turn);
    this.list.append(turn.element);
  }

  get isBusy() {
    return [...this.turns.values()].some((turn) => turn.isLive);
  }

  /** Ended turns with their figures, oldest first. */
  get ended() {
    return [...this.turns.values()].map((turn) => turn.item.turn).filter(Boolean);
  }

  follow() {
    if (this.follows) this.log.scrollTop = this.log.scrollHeight;
  }

  toEnd() {
    this.follows = true;
    this.follow();
    setHidden(byId('to-end'), true);
  }
}

function systemPrompt(text) {
  if (!text) return null;
  return h('details', { class: 'system' }, h('summary', {}, 'System prompt'), h('div', { class: 'text' }, text));
}

function hint() {
  return h('div', { class: 'hint' }, h('b', {}, 'Nothing has been said yet'),
    'Ask below. Questions that others ask on the topic or the action appear here, too.');
}
