// The question before a conversation is forgotten.

import { byId } from './dom.js';

/** reset(systemPrompt) does it; failed(text) shows why it did not work. */
export function resetDialog(reset, failed) {
  const dialog = byId('reset-dialog');
  const prompt = byId('system-prompt');
  byId('reset').addEventListener('click', () => {
    prompt.value = '';
    dialog.showModal();
  });
  byId('reset-no').addEventListener('click', () => dialog.close());
  byId('reset-yes').addEventListener('click', async () => {
    dialog.close();
    try {
      await reset(prompt.value.trim());
    } catch (error) {
      failed(error.message);
    }
  });
}
