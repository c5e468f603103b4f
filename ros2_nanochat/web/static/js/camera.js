// The live camera. The server is asked for pictures only while somebody can see them.

import { h, setHidden, setText } from './dom.js';
import { Panel } from './panel.js';

export class Camera {
  /** changed() is called when the camera comes into sight or leaves it, and when another one is chosen. */
  constructor(changed) {
    this.panel = new Panel('camera', 'Camera');
    this.choice = h('select', {
      'aria-label': 'Which camera', hidden: true, onchange: () => this.choose(this.choice.value),
    });
    this.image = h('img', { width: '640', height: '480', hidden: true });
    this.blank = h('p', { class: 'blank' }, 'No picture has come yet.');
    this.trouble = h('p', { class: 'trouble', role: 'status', hidden: true });
    this.panel.body.append(this.choice, this.image, this.blank, this.trouble);
    this.element = this.panel.element;
    this.name = '';
    this.names = [];
    this.inSight = false;
    this.times = [];
    this.changed = changed;
    new IntersectionObserver(([entry]) => {
      this.inSight = entry.isIntersecting;
      changed();
    }).observe(this.panel.body);
    document.addEventListener('visibilitychange', changed);
    this.image.addEventListener('load', () => URL.revokeObjectURL(this.image.src));
    setInterval(() => this.showRate(), 1000);
  }

  /** Name of the camera whose pictures are wanted, '' for none. */
  get wanted() {
    return this.inSight && document.visibilityState === 'visible' ? this.name : '';
  }

  /** Shows which cameras there are, by name. */
  show(names) {
    setHidden(this.element, !names.length);
    if (names.join('\n') === this.names.join('\n')) return;
    this.names = names;
    this.choice.replaceChildren(...names.map((name) => h('option', { value: name }, name)));
    setHidden(this.choice, names.length < 2);
    if (names.length && !names.includes(this.name)) this.choose(names[0]);
    else this.choice.value = this.name;
  }

  choose(name) {
    this.name = name;
    this.choice.value = name;
    this.clear();
    this.image.alt = name === 'image' ? 'What the robot sees' : `What the robot's camera ${name} sees`;
    this.changed();
  }

  clear() {
    this.image.removeAttribute('src');
    setHidden(this.image, true);
    setHidden(this.blank, false);
    this.times = [];
    this.setTrouble({ name: this.name, trouble: '' });
  }

  frame(blob) {
    this.image.src = URL.createObjectURL(blob);
    setHidden(this.image, false);
    setHidden(this.blank, true);
    this.times.push(performance.now());
    this.setTrouble({ name: this.name, trouble: '' });
  }

  setTrouble({ name, trouble }) {
    if (name !== this.name) return;
    setText(this.trouble, trouble);
    setHidden(this.trouble, !trouble);
  }

  showRate() {
    const now = performance.now();
    this.times = this.times.filter((time) => now - time < 3000);
    if (this.element.hidden || !this.element.open) return this.panel.setBadge('');
    this.panel.setBadge(this.times.length ? `${(this.times.length / 3).toFixed(1)} a second` : 'no picture');
  }
}
