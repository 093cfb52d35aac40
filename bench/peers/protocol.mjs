// The commands of protocol.py, and its loops, for queues that run on Node. See there for what each means.

import { openSync, writeSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";

const BULK_JOBS = 1000;
const NOTED_EVERY = 1000;
const PAUSE_MS = 20;

// CLOCK_MONOTONIC in seconds, as Python's time.monotonic().
export const monotonic = () => Number(process.hrtime.bigint()) / 1e9;

export class Notes {
  #file;
  #counted = 0;
  #noted = 0;

  constructor(path) {
    this.#file = openSync(path, "a");
  }

  write(event, number, seconds = monotonic()) {
    writeSync(this.#file, `${event} ${number} ${seconds.toFixed(6)}\n`);
  }

  count(jobs = 1) {
    const before = this.#counted;
    this.#counted += jobs;
    if (before === 0 || Math.floor(before / NOTED_EVERY) !== Math.floor(this.#counted / NOTED_EVERY)) {
      this.write("noop", this.#counted - this.#noted);
      this.#noted = this.#counted;
    }
  }
}

export const ready = () => console.log("ready");

export const untilSigterm = () => {
  // A promise alone keeps no process alive; a timer does.
  const alive = setInterval(() => {}, 60_000);
  return new Promise((resolve) =>
    process.once("SIGTERM", () => {
      clearInterval(alive);
      resolve();
    }),
  );
};

const range = (first, end) => Array.from({ length: end - first }, (_, i) => first + i);

async function preload(client, jobs) {
  for (let first = 0; first < jobs; first += BULK_JOBS) {
    await client.enqueueMany("noop", range(first, Math.min(first + BULK_JOBS, jobs)));
  }
}

async function pickup(client, notes, samples) {
  for (let number = 0; number < samples; number++) {
    const called = monotonic();
    await client.enqueue("stamp", number);
    const committed = monotonic();
    notes.write("call", number, called);
    notes.write("commit", number, committed);
    await sleep(PAUSE_MS);
  }
}

async function enqueue(client, producers, batch, seconds) {
  let enqueued = 0;
  const began = monotonic();
  const produce = async () => {
    while (monotonic() - began < seconds) {
      if (batch === 1) await client.enqueue("noop", enqueued);
      else await client.enqueueMany("noop", range(0, batch));
      enqueued += batch;
    }
  };
  await Promise.all(range(0, producers).map(produce));
  console.log(`enqueued ${enqueued} ${(monotonic() - began).toFixed(6)}`);
}

// `app` has setup(dsn), work(dsn, notes, purpose) and openClient(dsn, connections), which gives enqueue, enqueueMany and close.
export async function main(app) {
  const [command, dsn, ...given] = process.argv.slice(2);
  const withClient = async (connections, action) => {
    const client = await app.openClient(dsn, connections);
    try {
      await action(client);
    } finally {
      await client.close();
    }
  };
  const commands = {
    setup: () => app.setup(dsn),
    preload: ([jobs]) => withClient(1, (client) => preload(client, Number(jobs))),
    work: ([path, purpose]) => app.work(dsn, new Notes(path), purpose),
    pickup: ([path, samples]) => withClient(1, (client) => pickup(client, new Notes(path), Number(samples))),
    enqueue: ([producers, batch, seconds]) =>
      withClient(Number(producers), (client) => enqueue(client, Number(producers), Number(batch), Number(seconds))),
  };
  if (!(command in commands)) throw new Error(`no command ${command}: setup, preload, work, pickup or enqueue`);
  await commands[command](given);
  process.exit(0);
}
