// Light or dark: as the system is, until the user chooses.

import { byId } from './dom.js';

export function followTheme() {
  let chosen = null;
  try {
    chosen = localStorage.getItem('theme');
  } catch {
    // the browser keeps nothing for this page
  }
  if (chosen) document.documentElement.dataset.theme = chosen;
  byId('theme').addEventListener('click', () => {
    const now = document.documentElement.dataset.theme || (matchMedia('(prefers-color-scheme: dark)').matches ? 'dark' : 'light');
    const next = now === 'dark' ? 'light' : 'dark';
    document.documentElement.dataset.theme = next;
    try {
      localStorage.setItem('theme', next);
    } catch {
      // likewise
    }
  });
}
