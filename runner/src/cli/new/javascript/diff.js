// A plugin that reports each difference between two builds in the log.

import { config, hook, log } from './hookrun.js';

export const diff = hook((event) => {
  log.warn(`${config().greeting}: ${event.name} is not reproducible`);
  return `${event.differences.length} differences`;
});
