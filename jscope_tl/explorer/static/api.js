// Requests to the server. A saved page has no server, but its own data.

const token = new URLSearchParams(location.search).get("token") ?? "";
const held = document.getElementById("frozen");

export const frozen = held && JSON.parse(held.textContent);

async function answered(path, given, signal) {
  const how = given === undefined ? {} : { method: "POST", body: JSON.stringify(given) };
  const response = await fetch(`api/${path}`, { ...how, signal, headers: { "x-jscope-token": token, "content-type": "application/json" } })
    .catch(() => { throw new Error("The server does not answer. Is jscope app still running?"); });
  if (response.ok) return response;
  const found = await response.json().catch(() => ({ error: `The server answered ${response.status}.` }));
  throw Object.assign(new Error(found.error), { status: response.status });
}

export const ask = async (path, given, signal) => (await answered(path, given, signal)).json();
export const fetchText = async path => (await answered(path)).text();

const running = new Set();

// A call that can be cancelled; `tell` is called with its progress.
export async function job(path, given, tell) {
  const name = `${path}-${crypto.getRandomValues(new Uint32Array(4)).join("-")}`; // randomUUID is available only on this machine and with HTTPS
  const poll = setInterval(async () => {
    const at = await ask(`progress?job=${name}`).catch(() => null);
    if (at?.state === "running" && at.total) tell(`${at.what}: ${at.done} of ${at.total}`);
    else if (at?.state === "waiting") tell("waiting for its turn");
  }, 300);
  running.add(name);
  try {
    return await ask(path, { ...given, job: name });
  } finally {
    running.delete(name);
    clearInterval(poll);
  }
}

export const cancelAll = () => Promise.all([...running].map(name => ask("cancel", { job: name }).catch(() => null)));
