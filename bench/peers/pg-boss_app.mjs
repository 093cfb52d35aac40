// pg-boss.

import { PgBoss } from "pg-boss";
import { main, ready, untilSigterm } from "./protocol.mjs";

// https://pgboss.io/api/workers: a thousand jobs to one call of the handler, the next fetch at once while fetches come back
// full; woken by NOTIFY (https://pgboss.io/api/constructor#uselistennotify), which a queue opts into.
const THROUGHPUT = { batchSize: 1000, localConcurrency: 4, burstWhenBatchFull: true, pollingIntervalSeconds: 0.5 };
const LATENCY = { batchSize: 10, pollingIntervalSeconds: 0.5 };
const QUEUES = ["noop", "stamp"];

const open = async (dsn, options) => {
  const boss = new PgBoss({ connectionString: dsn, ...options });
  boss.on("error", (error) => console.error(error));
  await boss.start();
  return boss;
};

main({
  async setup(dsn) {
    const boss = await open(dsn, { supervise: false, schedule: false, max: 2 });
    for (const queue of QUEUES) await boss.createQueue(queue, { notify: true });
    await boss.stop();
  },

  async work(dsn, notes, purpose) {
    const boss = await open(dsn, { useListenNotify: true, max: 10 });
    const options = purpose === "throughput" ? THROUGHPUT : LATENCY;
    await boss.work("noop", options, async (jobs) => notes.count(jobs.length));
    await boss.work("stamp", options, async (jobs) => {
      for (const job of jobs) notes.write("start", job.data.n);
    });
    ready();
    await untilSigterm();
    await boss.stop({ graceful: false });
  },

  async openClient(dsn, connections) {
    const boss = await open(dsn, { useListenNotify: true, supervise: false, schedule: false, max: connections + 1 });
    return {
      enqueue: (type, n) => boss.send(type, { n }),
      enqueueMany: (type, numbers) => boss.insert(type, numbers.map((n) => ({ data: { n } }))),
      close: () => boss.stop({ graceful: false }),
    };
  },
});
