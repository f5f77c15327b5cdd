// The server's API: JSON, streams of events, errors in words, and the key where one is demanded.
//
// A key is kept in this tab's sessionStorage and goes to this server alone: all addresses are relative.
import { askForKey } from "./key.js";

const KEY = "pomona-key";

export class ApiError extends Error {
  constructor(status, message, retryAfter) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

// A response that is fine. Asks for a key when the server does, and tries again with it.
export async function request(path, { method = "GET", body, signal } = {}) {
  for (;;) {
    const headers = {};
    const key = sessionStorage.getItem(KEY);
    if (key) headers.Authorization = `Bearer ${key}`;
    if (body !== undefined) headers["Content-Type"] = "application/json";
    let response;
    try {
      response = await fetch(path, { method, headers, signal, body: body === undefined ? undefined : JSON.stringify(body) });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ApiError(0, "The server does not answer. Is `pomona serve` still running?");
    }
    if (response.ok) return response;
    if (response.status === 401) {
      const given = await askForKey(key !== null);
      if (given !== null) {
        sessionStorage.setItem(KEY, given);
        continue;
      }
    }
    throw await errorOf(response);
  }
}

export async function getJson(path, options) {
  return (await request(path, options)).json();
}

async function errorOf(response) {
  const seconds = Number(response.headers.get("Retry-After"));
  let message = `${response.status} ${response.statusText}`;
  try {
    message = (await response.json()).error.message;
  } catch {
    // Not in our form: a proxy's page, perhaps. The status must do.
  }
  if (response.status === 429) message = `The server is busy. ${message}`;
  return new ApiError(response.status, message, seconds > 0 ? seconds : null);
}

// The server-sent events of a request, as {event, data}; data is parsed JSON. "[DONE]" ends the stream.
export async function* events(path, options) {
  const response = await request(path, { method: "POST", ...options });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      rest += done ? "\n\n" : value;
      const blocks = rest.split(/\r?\n\r?\n/);
      rest = blocks.pop();
      for (const block of blocks) {
        const found = parsed(block);
        if (found === null) continue;
        if (found.text === "[DONE]") return;
        const data = JSON.parse(found.text);
        if (data.error) throw new ApiError(response.status, data.error.message);
        yield { event: found.event, data };
      }
      if (done) return;
    }
  } finally {
    reader.cancel().catch(() => {}); // who leaves early tells the server
  }
}

function parsed(block) {
  let event = "message";
  const lines = [];
  for (const line of block.split(/\r?\n/)) {
    if (line.startsWith("event:")) event = line.slice(6).trim();
    else if (line.startsWith("data:")) lines.push(line.slice(5).trimStart());
  }
  return lines.length > 0 ? { event, text: lines.join("\n") } : null;
}
