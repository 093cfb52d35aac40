// Graphile Worker.

import { Logger, makeWorkerUtils, run } from "graphile-worker";
import { Notes, main, ready, untilSigterm } from "./protocol.mjs";

// https://worker.graphile.org/docs/performance#batching: a large local queue, completions in batches. Latency is taken with
// its defaults for both, as the same page advises.
const THROUGHPUT = {
  concurrentJobs: 100,
  localQueue: { size: 2000 },
  completeJobBatchDelay: 0,
  failJobBatchDelay: 0,
  maxPoolSize: 10,
};
const LATENCY = { concurrentJobs: 10, maxPoolSize: 12 };

const logger = new Logger(() => (level, message) => level === "error" && console.error(message));

main({
  async setup(dsn) {
    const utils = await makeWorkerUtils({ connectionString: dsn, logger });
    await utils.migrate();
    await utils.release();
  },

  async work(dsn, notes, purpose) {
    const worker = await run({
      connectionString: dsn,
      noHandleSignals: true,
      logger,
      taskList: {
        noop: async () => notes.count(),
        stamp: async (payload) => notes.write("start", payload.n),
      },
      preset: { worker: { connectionString: dsn, ...(purpose === "throughput" ? THROUGHPUT : LATENCY) } },
    });
    ready();
    await untilSigterm();
    await worker.stop();
  },

  async openClient(dsn, connections) {
    const utils = await makeWorkerUtils({ connectionString: dsn, maxPoolSize: connections, logger });
    return {
      enqueue: (type, n) => utils.addJob(type, { n }),
      enqueueMany: (type, numbers) => utils.addJobs(numbers.map((n) => ({ identifier: type, payload: { n } }))),
      close: () => utils.release(),
    };
  },
});
