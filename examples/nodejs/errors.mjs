// What went wrong, in a form to decide by: reads google.rpc.Status from the trailer `grpc-status-details-bin`.
//
// The messages are declared here because the .proto files of google.rpc do not come with the gRPC libraries; their
// numbers are Google's and do not change.

import protobuf from "protobufjs";

const { root } = protobuf.parse(`
  syntax = "proto3";
  package google.rpc;
  message Any { string type_url = 1; bytes value = 2; }
  message Status { int32 code = 1; string message = 2; repeated Any details = 3; }
  message ErrorInfo { string reason = 1; string domain = 2; map<string, string> metadata = 3; }
  message Duration { int64 seconds = 1; int32 nanos = 2; }
  message RetryInfo { Duration retry_delay = 1; }
`, { keepCase: true });

const Status = root.lookupType("google.rpc.Status");
const ErrorInfo = root.lookupType("google.rpc.ErrorInfo");
const RetryInfo = root.lookupType("google.rpc.RetryInfo");

/**
 * The facts of a failed call: `{reason, definite, retryable, retryAfterMs, metadata, code, message}`.
 *
 * A status without our details comes from the gRPC library itself: a deadline, a broken connection. The outcome of a write
 * is then unknown, so `definite` is false.
 */
export function describe(error) {
  const facts = {
    reason: "",
    definite: false,
    retryable: false,
    retryAfterMs: 0,
    metadata: {},
    code: error.code,
    message: error.details,
  };
  const [trailer] = error.metadata?.get("grpc-status-details-bin") ?? [];
  if (trailer === undefined) return facts;
  for (const { type_url, value } of Status.decode(trailer).details) {
    const name = type_url.slice(type_url.lastIndexOf("/") + 1);
    if (name === "google.rpc.ErrorInfo") {
      const info = ErrorInfo.decode(value);
      if (info.domain !== "raftcache") continue;
      const { definite, retryable, ...metadata } = info.metadata;
      Object.assign(facts, {
        reason: info.reason,
        definite: definite === "true",
        retryable: retryable === "true",
        metadata,
      });
    } else if (name === "google.rpc.RetryInfo") {
      const { seconds, nanos } = RetryInfo.toObject(RetryInfo.decode(value), { longs: Number, defaults: true }).retry_delay;
      facts.retryAfterMs = seconds * 1000 + nanos / 1e6;
    }
  }
  return facts;
}
