// A raftcache client from the .proto files alone: no generated code, no raftcache library. See README.md.
//
//   node client.mjs [--address HOST:PORT[,HOST:PORT...]] put KEY VALUE
//   node client.mjs get KEY
//   node client.mjs pipeline COUNT
//   node client.mjs --load [--prefix PREFIX] [--first N] [--count N] [--outstanding N]
//
// Prints one JSON object a line. Exit code 0: it worked; 1: the cluster refused, with the facts on standard error.

import { parseArgs } from "node:util";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";

import grpc from "@grpc/grpc-js";
import protoLoader from "@grpc/proto-loader";

import { describe } from "./errors.mjs";

const PROTO = fileURLToPath(new URL("../../proto", import.meta.url));
// 64-bit numbers as strings: revisions and ids outgrow the integers that a double can hold.
const definition = protoLoader.loadSync("raftcache/v1/kv.proto", {
  includeDirs: [PROTO],
  keepCase: true,
  longs: String,
  enums: String,
  oneofs: true,
});
const { KvService } = grpc.loadPackageDefinition(definition).raftcache.v1;

const DEADLINE_MS = 5_000;
const ATTEMPT_PAUSE_MS = 50;

const print = (facts) => process.stdout.write(`${JSON.stringify(facts)}\n`);
const text = (bytes) => Buffer.from(bytes).toString("utf8");

function connect(address) {
  return new KvService(address, grpc.credentials.createInsecure(), {
    // Long enough for proxies, and above the server's minimum of 5 s.
    "grpc.keepalive_time_ms": 20_000,
    "grpc.keepalive_timeout_ms": 5_000,
    "grpc.initial_reconnect_backoff_ms": 100,
    "grpc.max_reconnect_backoff_ms": 1_000,
  });
}

/** Calls a unary method; rejects with grpc-js's error. */
function call(client, method, request) {
  return new Promise((resolve, reject) => {
    client[method](request, { deadline: Date.now() + DEADLINE_MS }, (error, reply) => (error ? reject(error) : resolve(reply)));
  });
}

async function put(client, key, value) {
  const reply = await call(client, "Put", { key: Buffer.from(key), value: Buffer.from(value) });
  print({ key, succeeded: reply.succeeded, revision: reply.header.revision, shard: reply.header.shard });
}

async function get(client, key) {
  const { entry, header } = await call(client, "Get", { key: Buffer.from(key) });
  print(
    entry
      ? { key, value: text(entry.value), version: entry.version, revision: entry.mod_revision, shard: header.shard }
      : { key, value: null, shard: header.shard },
  );
}

/** Sends `count` batches of a put and a get of one key on one stream, and prints what each get saw. */
function pipeline(client, count) {
  return new Promise((resolve, reject) => {
    const stream = client.Pipeline();
    stream.on("data", ({ request_id, results, error }) => {
      // A batch can be refused as a whole, and each operation by itself; neither ends the stream.
      const failed = error ?? results.map((result) => result.error).find(Boolean);
      if (failed) print({ request_id, reason: failed.reason, definite: failed.definite, message: failed.message });
      else print({ request_id, put: results[0].put.succeeded, got: text(results[1].get.entry.value) });
    });
    stream.on("error", reject);
    stream.on("end", resolve);
    const key = Buffer.from("example/pipeline");
    let number = 0;
    // `write` returns false when the stream is full: the server stops reading while too much is unanswered.
    const more = () => {
      while (number < count) {
        number += 1;
        const operations = [{ put: { key, value: Buffer.from(`${number}`) } }, { get: { key } }];
        if (!stream.write({ request_id: number, operations })) {
          stream.once("drain", more);
          return;
        }
      }
      stream.end();
    };
    more();
  });
}

/**
 * Writes numbered keys, each until it is acknowledged, and prints each acknowledged one: whatever happens to the cluster,
 * every key printed here must be found again. Writing the same value to the same key again is harmless, so an unknown
 * outcome is simply tried again.
 */
async function load(clients, { prefix, first, count, outstanding }) {
  let next = first;
  let stopping = false;
  const stop = () => {
    stopping = true;
  };
  process.on("SIGTERM", stop);
  process.on("SIGINT", stop);
  const writer = async (turn) => {
    while (!stopping && (count === 0 || next < first + count)) {
      const number = next;
      next += 1;
      const key = `${prefix}${number}`;
      for (let attempt = 1; !stopping; attempt += 1) {
        const client = clients[turn % clients.length];
        try {
          const reply = await call(client, "Put", { key: Buffer.from(key), value: Buffer.from(`value-${number}`) });
          print({ key, value: `value-${number}`, revision: reply.header.revision, shard: reply.header.shard, attempt });
          break;
        } catch (error) {
          const { reason, definite, retryable, retryAfterMs, message, code } = describe(error);
          if (definite && !retryable && reason !== "DEADLINE_EXPIRED") throw error;
          process.stderr.write(`${JSON.stringify({ key, attempt, code, reason, definite, message })}\n`);
          turn += 1;
          await sleep(Math.max(retryAfterMs, ATTEMPT_PAUSE_MS));
        }
      }
    }
  };
  await Promise.all(Array.from({ length: outstanding }, (_, turn) => writer(turn)));
}

const USAGE = "usage: node client.mjs [--address HOST:PORT,...] (put KEY VALUE | get KEY | pipeline COUNT | --load)";

function commandLine() {
  const description = {
    allowPositionals: true,
    options: {
      help: { type: "boolean", short: "h", default: false },
      address: { type: "string", default: "127.0.0.1:7400" },
      load: { type: "boolean", default: false },
      prefix: { type: "string", default: "load/" },
      first: { type: "string", default: "0" },
      count: { type: "string", default: "0" },
      outstanding: { type: "string", default: "16" },
    },
  };
  try {
    return parseArgs(description);
  } catch (error) {
    process.stderr.write(`${error.message}\n${USAGE}\n`);
    process.exit(2);
  }
}

async function main() {
  const { values, positionals } = commandLine();
  if (values.help) {
    process.stdout.write(`${USAGE}\n`);
    return;
  }
  const clients = values.address.split(",").map(connect);
  const [command, ...args] = positionals;
  try {
    if (values.load) {
      await load(clients, {
        prefix: values.prefix,
        first: Number(values.first),
        count: Number(values.count),
        outstanding: Number(values.outstanding),
      });
    } else if (command === "put" && args.length === 2) await put(clients[0], ...args);
    else if (command === "get" && args.length === 1) await get(clients[0], ...args);
    else if (command === "pipeline" && args.length === 1) await pipeline(clients[0], Number(args[0]));
    else {
      process.stderr.write(`${USAGE}\n`);
      process.exitCode = 2;
    }
  } catch (error) {
    if (error.code === undefined || error.metadata === undefined) throw error;
    process.stderr.write(`${JSON.stringify(describe(error))}\n`);
    process.exitCode = 1;
  } finally {
    clients.forEach((client) => client.close());
  }
}

await main();
