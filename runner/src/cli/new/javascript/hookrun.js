// What a plugin needs of hookrun: its configuration, the log, and failures.

import { get } from 'hookrun:host/config@0.1.0';
import { write } from 'hookrun:host/log@0.1.0';

/** Returns the plugin's `config` table. */
export function config() {
  return JSON.parse(get());
}

function logger(level) {
  return (message, fields = {}) =>
    write(level, String(message), Object.entries(fields).map(([key, value]) => ({ key, value: String(value) })));
}

/** Writes to the log of the run, which `hookrun log` shows. */
export const log = {
  trace: logger('trace'),
  debug: logger('debug'),
  info: logger('info'),
  warn: logger('warn'),
  error: logger('error'),
};

/** A failure of a run. After a transient one, hookrun tries the event again later. */
export class Failure extends Error {
  constructor(message, { transient = false, retryAfterMs = null } = {}) {
    super(message);
    this.transient = transient;
    this.retryAfterMs = retryAfterMs;
  }
}

/**
 * Makes a hook of a function that takes the event, and returns a message or
 * `{ message, details: { name: value } }`. Whatever it throws is a failure. An error of a host call
 * is transient if its kind is.
 */
export function hook(handle) {
  return {
    handle(event) {
      try {
        const result = handle(event);
        if (result === undefined) {
          throw new Error('the hook returned nothing; return a message');
        }
        const { message, details = {} } = typeof result === 'object' ? result : { message: result };
        return {
          message: String(message),
          details: Object.entries(details).map(([key, value]) => [key, String(value)]),
        };
      } catch (error) {
        throw {
          message: String(error?.message ?? error),
          transient: error?.transient === true || error?.kind === 'transient',
          retryAfterMs: error?.retryAfterMs ?? null,
        };
      }
    },
  };
}

/**
 * Makes a policy of a function that takes the candidate, the machines and the local machine, and
 * returns `{ machines: [uri], reason }` or `{ action: 'local' | 'postpone' | 'decline', reason }`.
 * Whatever it throws is the message of a failure, and Nix's own rule is used.
 */
export function policy(select) {
  return {
    select(candidate, machines, local) {
      try {
        const { action = 'machines', machines: chosen = [], reason, askAgainMs = null } = select(candidate, machines, local);
        return { action, machines: chosen, reason: String(reason), askAgainMs };
      } catch (error) {
        throw String(error?.message ?? error);
      }
    },
  };
}
