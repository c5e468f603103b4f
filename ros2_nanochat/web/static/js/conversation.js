// The conversation of one robot: a list of turns that grows at the end.

import { byId, h, setHidden, setText } from './dom.js';
import { Turn } from './turn.js';

const NEAR_THE_END = 80;
const SPOKEN = 1000; // characters of a reply that screen readers get at its end

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
    this.prompt = new SystemPrompt();
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

  /** Replaces everything. What stays keeps its element, and with it what is open, selected or half written. */
  replace(event) {
    const before = this.turns;
    const isNew = !before.size;
    this.turns = new Map(event.items.map((item) => [item.key, before.get(item.key) ?? this.make(item)]));
    for (const item of event.items) before.get(item.key)?.update(item);
    const elements = [...this.turns.values()].map((turn) => turn.element);
    this.prompt.show(event.system);
    this.list.replaceChildren(this.prompt.element, ...(elements.length ? elements : [hint()]));
    if (isNew) this.toEnd();
    else this.follow();
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
    if (item.state === 'ended') setText(byId('spoken'), item.text.slice(0, SPOKEN));
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

  make(item) {
    const turn = new Turn(item, this.actions);
    turn.showCalls([...(this.calls.get(item.key)?.values() ?? [])]);
    return turn;
  }

  add(item) {
    this.log.querySelector('.hint')?.remove();
    const turn = this.make(item);
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

class SystemPrompt {
  constructor() {
    this.text = h('div', { class: 'text', dir: 'auto' });
    this.element = h('details', { class: 'system' }, h('summary', {}, 'System prompt'), this.text);
  }

  show(text) {
    setText(this.text, text);
    setHidden(this.element, !text);
  }
}

function hint() {
  return h('div', { class: 'hint' }, h('b', {}, 'Nothing has been said yet'),
    'Ask below. Questions that others ask on the topic or the action appear here, too.');
}
