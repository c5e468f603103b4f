// The connection to the server: events and camera pictures in, requests out. It connects again by itself.

const FIRST_WAIT = 500;
const LONGEST_WAIT = 5000;
const NO_ANSWER = 30000;
const MOST = 100000; // characters of a request

export class Connection {
  /** receive(event), frame(blob) and changed(isOpen) are called as things happen. */
  constructor(receive, frame, changed) {
    Object.assign(this, { receive, frame, changed });
    this.pending = new Map();
    this.uploads = [];
    this.number = 0;
    this.wait = FIRST_WAIT;
    this.connect();
  }

  connect() {
    const scheme = location.protocol === 'https:' ? 'wss' : 'ws';
    const socket = new WebSocket(`${scheme}://${location.host}/socket`);
    this.socket = socket;
    socket.onopen = () => {
      this.wait = FIRST_WAIT;
      this.changed(true);
    };
    socket.onmessage = (message) => {
      if (typeof message.data !== 'string') return this.frame(new Blob([message.data], { type: 'image/jpeg' }));
      for (const event of JSON.parse(message.data)) this.take(event);
    };
    socket.onclose = () => {
      this.failAll('the connection to the page\'s server was lost');
      this.changed(false);
      setTimeout(() => this.connect(), this.wait);
      this.wait = Math.min(2 * this.wait, LONGEST_WAIT);
    };
  }

  take(event) {
    if (event.type === 'uploaded') return settle(this.uploads.shift(), event, event.picture);
    if (event.type !== 'done') return this.receive(event);
    settle(this.pending.get(event.n), event, event.message);
    this.pending.delete(event.n);
  }

  /** Asks the server for something. Resolves to its message; rejects with its error. */
  request(request) {
    return new Promise((resolve, reject) => {
      if (!this.isOpen) return reject(new Error('there is no connection to the page\'s server'));
      const n = ++this.number;
      const text = JSON.stringify({ ...request, n });
      if (text.length > MOST) return reject(new Error('the request is too long')); // the server would not read it
      this.pending.set(n, { resolve, reject });
      this.socket.send(text);
      setTimeout(() => {
        if (this.pending.delete(n)) reject(new Error('no answer from the page\'s server'));
      }, NO_ANSWER);
    });
  }

  /** Sends a picture. Resolves to its name. */
  upload(file) {
    return new Promise((resolve, reject) => {
      if (!this.isOpen) return reject(new Error('there is no connection to the page\'s server'));
      this.uploads.push({ resolve, reject });
      this.socket.send(file);
    });
  }

  get isOpen() {
    return this.socket.readyState === WebSocket.OPEN;
  }

  failAll(reason) {
    for (const waiting of this.pending.values()) waiting.reject(new Error(reason));
    this.pending.clear();
    for (const waiting of this.uploads) waiting.reject(new Error(reason));
    this.uploads = [];
  }
}

function settle(waiting, event, value) {
  if (!waiting) return;
  if (event.error) waiting.reject(new Error(event.error));
  else waiting.resolve(value);
}
