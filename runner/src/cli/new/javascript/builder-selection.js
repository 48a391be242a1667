// A policy that prefers machines whose host name begins with `fast`.

import { policy } from './hookrun.js';

/** Returns the host name in a store URI. */
function host(uri) {
  return uri.replace(/^[^:]*:\/\//, '').split(/[/?#]/)[0].split('@').pop();
}

export const builderSelection = policy((candidate, machines, local) => {
  const isFast = (machine) => host(machine.uri).startsWith('fast');
  const sorted = [...machines].sort((one, other) => isFast(other) - isFast(one));
  return { machines: sorted.map((machine) => machine.uri), reason: 'fast machines first' };
});
