// A panel at the side that can be folded; whether it is, is remembered.

import { h } from './dom.js';

export class Panel {
  constructor(name, title, kind = name) {
    this.badge = h('span', { class: 'badge', hidden: true });
    this.body = h('div', { class: 'body' });
    this.element = h('details', { class: `panel ${kind}`, id: `panel-${name}`, open: stored(name) !== 'closed' },
      h('summary', {}, title, ' ', this.badge), this.body);
    this.element.addEventListener('toggle', () => {
      store(name, this.element.open ? 'open' : 'closed');
      this.toggled?.();
    });
  }

  setBadge(text, level = '') {
    this.badge.textContent = text;
    this.badge.className = `badge ${level}`;
    this.badge.hidden = !text;
  }
}

function stored(name) {
  try {
    return localStorage.getItem(`panel-${name}`);
  } catch {
    return null; // the browser keeps nothing for this page
  }
}

function store(name, value) {
  try {
    localStorage.setItem(`panel-${name}`, value);
  } catch {
    // likewise
  }
}
