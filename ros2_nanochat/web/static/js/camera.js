// The live camera. The server is asked for pictures only while somebody can see them.

import { h, setHidden, setText } from './dom.js';
import { Panel } from './panel.js';

export class Camera {
  /** changed() is called when the camera comes into sight or leaves it. */
  constructor(changed) {
    this.panel = new Panel('camera', 'Camera');
    this.image = h('img', { alt: 'What the robot sees', width: '640', height: '480' });
    this.trouble = h('p', { class: 'trouble', hidden: true });
    this.panel.body.append(this.image, this.trouble);
    this.element = this.panel.element;
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

  /** Whether pictures are wanted. */
  get wanted() {
    return this.inSight && document.visibilityState === 'visible';
  }

  show(hasCamera) {
    setHidden(this.element, !hasCamera);
  }

  clear() {
    this.image.removeAttribute('src');
    this.times = [];
    this.setTrouble('');
  }

  frame(blob) {
    this.image.src = URL.createObjectURL(blob);
    this.times.push(performance.now());
    this.setTrouble('');
  }

  setTrouble(text) {
    setText(this.trouble, text);
    setHidden(this.trouble, !text);
  }

  showRate() {
    const now = performance.now();
    this.times = this.times.filter((time) => now - time < 3000);
    if (this.element.hidden || !this.element.open) return this.panel.setBadge('');
    this.panel.setBadge(this.times.length ? `${(this.times.length / 3).toFixed(1)} a second` : 'no picture');
  }
}
