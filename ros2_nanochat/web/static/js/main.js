// Puts the page together: what the server tells goes to the parts, what the user does goes to the server.

import { Camera } from './camera.js';
import { Composer } from './composer.js';
import { Conversation } from './conversation.js';
import { DiagnosticsPanel } from './diagnostics.js';
import { byId, setHidden, setText } from './dom.js';
import { Figures } from './figures.js';
import { resetDialog } from './reset.js';
import { Robots, stateOf } from './robots.js';
import { Connection } from './socket.js';
import { followTheme } from './theme.js';
import { Watches } from './watches.js';

const fleet = { robots: [], nodes: [] };
let selected = fromHash();
let asked = ''; // what the server was told last
let about = { tokens: 0, max_tokens: 0 }; // the size of the conversation

const robots = new Robots(select);
const camera = new Camera(show);
const figures = new Figures();
const diagnostics = new DiagnosticsPanel();
const watches = new Watches(changeWatch);
const conversation = new Conversation({ approve });
const composer = new Composer({
  ask: (question) => connection.request({ do: 'ask', robot: selected, ...question }),
  stop: () => connection.request({ do: 'stop', robot: selected }),
  upload: (file) => connection.upload(file),
});

byId('panels').append(camera.element, watches.element, figures.element, diagnostics.element);

const handlers = {
  fleet: (event) => {
    Object.assign(fleet, { robots: event.robots, nodes: event.nodes });
    if (!robot() && !selected && fleet.robots.length) select(fleet.robots[0].prefix);
    show();
  },
  conversation: (event) => {
    conversation.replace(event);
    aboutConversation(event);
    figures.turns(conversation.ended);
  },
  item: (event) => {
    conversation.item(event.item);
    if (!event.item.turn) return;
    figures.turns(conversation.ended);
    const { prompt_tokens: prompt, new_tokens: reply } = event.item.turn;
    if (prompt) aboutConversation({ ...about, tokens: prompt + reply });
  },
  calls: (event) => conversation.takeCalls(event.calls),
  watches: (event) => watches.take(event),
  observations: (event) => watches.observe(event),
  piece: (event) => conversation.piece(event),
  figures: (event) => figures.take(event),
  camera: (event) => camera.setTrouble(event),
};

const connection = new Connection(
  (event) => {
    if (event.robot !== undefined && event.robot !== selected) return; // of a robot that was shown before
    handlers[event.type]?.(event);
    showControls();
  },
  (blob) => camera.frame(blob),
  (isOpen) => {
    asked = '';
    setText(byId('connection'), isOpen ? 'connected' : 'no connection to the page\'s server: trying again');
    byId('connection').dataset.state = isOpen ? 'open' : 'closed';
    show();
  },
);

function fromHash() {
  try {
    return decodeURIComponent(location.hash.slice(1));
  } catch {
    return ''; // somebody wrote it by hand
  }
}

function robot() {
  return fleet.robots.find((each) => each.prefix === selected);
}

function select(prefix) {
  if (prefix === selected && robot()) return byId('question').focus();
  selected = prefix;
  history.replaceState(null, '', `#${encodeURIComponent(prefix)}`);
  conversation.clear();
  figures.clear();
  camera.clear();
  watches.clear();
  composer.problem('');
  show();
}

/** Tells the server what is shown, and shows what is known. */
function show() {
  tellShown();
  robots.show(fleet, selected);
  const now = robot();
  setText(byId('robot-name'), now?.name ?? (selected || 'No robot'));
  document.title = now ? `${now.name} · nanochat` : 'nanochat';
  camera.show(now?.cameras ?? []);
  watches.show(Boolean(now?.watches), now?.cameras ?? []);
  diagnostics.show(fleet.nodes.find((node) => node.name === now?.node), now);
  showControls();
}

function tellShown() {
  if (!connection?.isOpen || (selected && !robot())) return;
  const wanted = JSON.stringify([selected, camera.wanted]);
  if (wanted === asked) return;
  asked = wanted;
  connection.request({ do: 'show', robot: selected, camera: camera.wanted }).catch(() => { asked = ''; });
}

function showControls() {
  const now = robot();
  const trouble = problemOf(now);
  setText(byId('banner'), trouble);
  setHidden(byId('banner'), !trouble);
  byId('reset').disabled = !(now?.present && connection?.isOpen);
  composer.show({
    enabled: Boolean(now?.present && connection?.isOpen),
    busy: conversation.isBusy,
    cameras: now?.cameras ?? [],
    name: now?.name,
  });
}

function problemOf(now) {
  if (!connection?.isOpen) return 'There is no connection to the page\'s server. Trying again.';
  if (!selected) return '';
  if (!now || !now.present) return 'The node of this robot is not there. The page goes on when it is back.';
  if (now.silent) return 'The node of this robot has not answered for some seconds.';
  const state = stateOf(now);
  return state.level === 'bad' ? state.text : '';
}

function aboutConversation(size) {
  about = size;
  const { tokens, max_tokens: most } = about;
  setText(byId('robot-about'), most ? `${selected} · ${tokens.toLocaleString('en')} of ${most.toLocaleString('en')} tokens` : selected);
}

function approve(call, yes, reason) {
  return done({ do: 'approve', robot: selected, id: call.id, approve: yes, reason });
}

function changeWatch(command, { name, question, response_format, max_rate, cameras }) {
  return done({ do: 'watch', robot: selected, command, name, question, response_format, max_rate, cameras });
}

/** Asks the server for something; shows why it did not work. */
async function done(request) {
  try {
    await connection.request(request);
    composer.problem('');
    return true;
  } catch (error) {
    composer.problem(error.message);
    return false;
  }
}

resetDialog(
  (systemPrompt) => connection.request({ do: 'reset', robot: selected, system_prompt: systemPrompt }),
  (text) => composer.problem(text),
);
byId('panels-button').addEventListener('click', (event) => {
  const shown = document.body.classList.toggle('show-panels');
  event.currentTarget.setAttribute('aria-expanded', String(shown));
  setText(event.currentTarget, shown ? 'Chat' : 'Figures');
});
followTheme();
