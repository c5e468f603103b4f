// Where a question is written: text, pictures, the camera, the form of the answer; and the button that stops.

import { byId, h, setHidden, setText } from './dom.js';

const MOST_PICTURES = 4;
const LONG_NAME = 30; // characters
const MOST_BYTES = 16 << 20;

export class Composer {
  /** actions: ask(question), stop() and upload(file), each with a promise. */
  constructor(actions) {
    this.actions = actions;
    this.form = byId('composer');
    this.question = byId('question');
    this.pictures = [];
    this.form.addEventListener('submit', (event) => {
      event.preventDefault();
      this.send();
    });
    this.question.addEventListener('keydown', (event) => {
      if (event.key === 'Enter' && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        this.send();
      }
    });
    byId('stop').addEventListener('click', () => this.stop());
    byId('form').addEventListener('change', () => this.showForm());
    byId('picture').addEventListener('change', (event) => {
      this.add(event.target.files);
      event.target.value = '';
    });
    this.takesDrops();
    document.addEventListener('keydown', (event) => this.shortcut(event));
  }

  /** enabled: the robot is there; busy: a reply is on its way; cameras: names of those that it has. */
  show({ enabled, busy, cameras, name }) {
    this.enabled = enabled;
    byId('send').disabled = !enabled;
    setHidden(byId('stop'), !busy || !enabled);
    this.showCameras(cameras);
    this.question.placeholder = name && name.length <= LONG_NAME ? `Ask ${name}` : 'Ask the robot';
  }

  async send() {
    const text = this.question.value.trim();
    if (!this.enabled || (!text && !this.pictures.length)) return;
    this.problem('');
    const pictures = this.pictures;
    try {
      const names = await Promise.all(pictures.map((picture) => picture.name));
      const question = { text, pictures: names, response_format: this.responseFormat, ...this.camera };
      this.question.value = '';
      this.pictures = [];
      this.showPictures();
      await this.actions.ask(question);
      for (const picture of pictures) URL.revokeObjectURL(picture.address);
    } catch (error) {
      this.problem(error.message);
      if (!this.question.value && !this.pictures.length) {
        this.question.value = text;
        this.pictures = pictures;
        this.showPictures();
      }
    }
  }

  showCameras(names) {
    setHidden(byId('camera-choice'), !names.length);
    const all = names.join('\n');
    if (all === this.cameras) return;
    this.cameras = all;
    const choice = byId('image-mode');
    const before = choice.value;
    choice.querySelectorAll('[data-cameras]').forEach((option) => option.remove());
    const each = names.length > 1 ? [...names.map((name) => [`of ${name}`, name, [name]]), ['all', 'all together', names]] : [];
    choice.append(...each.map(([value, text, of]) => h('option', { value, 'data-cameras': JSON.stringify(of) }, text)));
    choice.value = before;
    if (choice.selectedIndex < 0) choice.value = '';
  }

  /** Which camera pictures go with the question, as fields of the request. */
  get camera() {
    if (byId('camera-choice').hidden) return {};
    const [option] = byId('image-mode').selectedOptions;
    return option.dataset.cameras ? { cameras: JSON.parse(option.dataset.cameras) } : { image_mode: option.value };
  }

  async stop() {
    try {
      await this.actions.stop();
    } catch (error) {
      this.problem(error.message);
    }
  }

  get responseFormat() {
    const choice = byId('form').value;
    return choice === 'other' ? byId('own-form').value.trim() : choice;
  }

  showForm() {
    const own = byId('own-form');
    setHidden(own, byId('form').value !== 'other');
    if (!own.hidden) own.focus();
  }

  problem(text) {
    setText(byId('problem'), text);
    setHidden(byId('problem'), !text);
  }

  // --- pictures ---

  add(files) {
    this.problem('');
    for (const file of files) {
      if (this.pictures.length >= MOST_PICTURES) return this.problem(`at most ${MOST_PICTURES} pictures a question`);
      if (file.size > MOST_BYTES) return this.problem(`${file.name} is larger than 16 MiB: scale it down first`);
      const picture = { address: URL.createObjectURL(file), name: this.actions.upload(file) };
      this.pictures.push(picture);
      picture.name.then(() => {
        picture.checked = true;
        this.showPictures();
      }, (error) => {
        this.remove(picture);
        this.problem(`${file.name}: ${error.message}`);
      });
    }
    this.showPictures();
  }

  remove(picture) {
    URL.revokeObjectURL(picture.address);
    this.pictures = this.pictures.filter((other) => other !== picture);
    this.showPictures();
  }

  showPictures() {
    const chosen = byId('chosen');
    setHidden(chosen, !this.pictures.length);
    chosen.replaceChildren(...this.pictures.map((picture) => h('figure', { class: picture.checked ? '' : 'checking' },
      h('img', { src: picture.address, alt: 'chosen picture' }),
      h('button', { type: 'button', 'aria-label': 'Remove the picture', onclick: () => this.remove(picture) }, '×'))));
  }

  takesDrops() {
    this.form.addEventListener('dragover', (event) => {
      event.preventDefault();
      this.form.classList.add('drop');
    });
    this.form.addEventListener('dragleave', () => this.form.classList.remove('drop'));
    this.form.addEventListener('drop', (event) => {
      event.preventDefault();
      this.form.classList.remove('drop');
      this.add(event.dataTransfer.files);
    });
    this.question.addEventListener('paste', (event) => {
      if (event.clipboardData.files.length) {
        event.preventDefault();
        this.add(event.clipboardData.files);
      }
    });
  }

  // --- keys ---

  shortcut(event) {
    if (document.querySelector('dialog[open]')) return;
    if (event.key === 'Escape' && !byId('stop').hidden) this.stop();
    const typing = /^(INPUT|TEXTAREA|SELECT)$/.test(document.activeElement?.tagName ?? '');
    if (event.key === '/' && !typing) {
      event.preventDefault();
      this.question.focus();
    }
  }
}
