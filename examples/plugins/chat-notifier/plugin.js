// Posts one message about all builds of the last minutes to a chat, instead of one for each build.

import { get, set } from 'hookrun:host/state@0.1.0';
import { config, Failure, hook } from './hookrun.js';

// The names that one message lists.
const SHOWN = 20;
const MINUTE_MS = 60_000;

/** Returns what was not announced yet, and when the last message was sent. */
function load() {
  const bytes = get('pending');
  return bytes ? JSON.parse(new TextDecoder().decode(bytes)) : { sentMs: 0, builds: {} };
}

function store(pending) {
  set('pending', new TextEncoder().encode(JSON.stringify(pending)));
}

function text(names) {
  const shown = names.slice(0, SHOWN).join(', ');
  const more = names.length > SHOWN ? ` and ${names.length - SHOWN} more` : '';
  return `${names.length} ${names.length === 1 ? 'build' : 'builds'}: ${shown}${more}`;
}

/** Posts a message, and throws a failure that says whether a retry may help. */
async function post(url, message, id) {
  let response;
  try {
    response = await fetch(url, {
      method: 'POST',
      headers: { 'content-type': 'application/json', 'idempotency-key': `"${id}"` },
      body: JSON.stringify(message),
    });
  } catch (error) {
    // The log of the run has the reason: no grant, or no connection.
    throw new Failure(`the chat could not be reached: ${error.message}`, { transient: true });
  }
  const { status } = response;
  if (!response.ok) {
    const transient = status === 408 || status === 429 || status >= 500;
    const seconds = Number(response.headers.get('retry-after'));
    const retryAfterMs = transient && seconds > 0 ? BigInt(seconds * 1000) : null;
    const fix = transient ? '' : '; check `url` and the `credential` of the grant';
    throw new Failure(`the chat answered with status ${status}${fix}`, { transient, retryAfterMs });
  }
}

async function announce(event) {
  const { url, minutes = 10 } = config();
  const pending = load();
  // By id, because the same event may come again.
  pending.builds[event.id] = event.name;
  // Kept also if the request fails: the next attempt sends all of them.
  store(pending);
  const nowMs = Number(event.timeMs);
  if (nowMs - pending.sentMs < minutes * MINUTE_MS) {
    return { message: `${event.name} waits for the next message`, details: { sent: 0 } };
  }
  const names = Object.values(pending.builds);
  await post(url, { text: text(names) }, event.id);
  store({ sentMs: nowMs, builds: {} });
  return { message: `announced ${names.length} builds`, details: { sent: names.length } };
}

export const postBuild = {
  async handle(event) {
    const result = await announce(event).then(
      (value) => () => value,
      (error) => () => {
        throw error;
      },
    );
    // Makes an outcome or a failure of what the function returns or throws. It does not wait.
    return hook(result).handle(event);
  },
};
