// A plugin that announces each build in the log.

import { config, hook, log } from './hookrun.js';

export const postBuild = hook((event) => {
  log.info(`${config().greeting}: ${event.name} was built`);
  return `${event.outputs.length} outputs`;
});
