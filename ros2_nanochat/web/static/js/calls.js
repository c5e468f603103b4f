// The tool calls of a turn: name, arguments, state, result, and the buttons for those that wait for approval.

import { h } from './dom.js';

const COLORS = new Map(Object.entries({
  waiting: 'warn', running: '', done: 'good', failed: 'bad', cancelled: 'warn', unknown: 'bad',
}));

export class Calls {
  constructor(actions) {
    this.actions = actions;
    this.element = h('div', { class: 'calls' });
    this.shown = new Map();
  }

  get isEmpty() {
    return this.shown.size === 0;
  }

  /** Shows calls, each in place of what was shown with its id. */
  show(calls) {
    for (const call of calls) {
      const content = JSON.stringify(call);
      const before = this.shown.get(call.id);
      if (before?.content === content) continue;
      const element = this.entry(call);
      if (before) before.element.replaceWith(element);
      else this.element.append(element);
      this.shown.set(call.id, { content, element });
    }
  }

  entry(call) {
    const duration = call.duration > 0 ? `${call.duration.toFixed(2)} s` : '';
    return h('section', { class: COLORS.has(call.state) ? `call ${call.state}` : 'call', 'data-call': call.id, 'aria-label': `Tool ${call.name}` },
      h('div', { class: 'title' },
        h('b', {}, visible(call.name)),
        h('span', { class: `badge ${COLORS.get(call.state) ?? ''}` },
          call.state === 'waiting' ? 'waits for you' : call.state),
        call.dry_run && h('span', { class: 'badge' }, 'dry run'),
        call.background && h('span', { class: 'badge' }, 'in the background'),
        h('span', { class: 'result' }, duration)),
      call.arguments && call.arguments !== '{}' && h('pre', {}, pretty(call.arguments)),
      call.feedback && call.state === 'running' && h('pre', { class: 'result' }, pretty(call.feedback)),
      call.result && h('pre', { class: 'result' }, pretty(call.result)),
      call.state === 'waiting' && this.decision(call));
  }

  decision(call) {
    const reason = h('input', { placeholder: 'reason, for the model', maxlength: '500', 'aria-label': 'Reason' });
    const answer = async (yes) => {
      buttons.forEach((button) => { button.disabled = true; });
      const done = await this.actions.approve(call, yes, reason.value);
      if (!done) buttons.forEach((button) => { button.disabled = false; });
    };
    const buttons = [
      h('button', { type: 'button', class: 'primary', onclick: () => answer(true) }, 'Allow'),
      h('button', { type: 'button', onclick: () => answer(false) }, 'Refuse'),
    ];
    return h('div', { class: 'decide' }, ...buttons, reason);
  }
}

function pretty(text) {
  try {
    const value = JSON.parse(text);
    const flat = JSON.stringify(value);
    return visible(flat.length < 80 ? flat : JSON.stringify(value, null, 2));
  } catch {
    return visible(text);
  }
}

/** Shows characters that are invisible or turn the order of others around: what is allowed must be what is read. */
function visible(text) {
  return text.replace(/[\p{Cf}\p{Co}\u2028\u2029]/gu, (character) => `\\u{${character.codePointAt(0).toString(16)}}`);
}
