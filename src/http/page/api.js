// What is asked for beside the stream: JSON and the metrics' text. An answer is {data} or {error, missing}: nothing is
// thrown, so that one section that fails leaves the others alone.

// An answer that takes longer than this is shown as an error; the next round asks again.
const PATIENCE_MS = 8000;

export async function ask(path) {
  const stop = new AbortController();
  const timer = setTimeout(() => stop.abort(), PATIENCE_MS);
  try {
    const answer = await fetch(path, { signal: stop.signal, credentials: 'same-origin', cache: 'no-store' });
    const text = await answer.text();
    if (!answer.ok) return { error: message(answer.status, text), missing: answer.status === 404 };
    return { data: path === '/metrics' ? series(text) : JSON.parse(text) };
  } catch (error) {
    return { error: error.name === 'AbortError' ? `no answer within ${PATIENCE_MS / 1000} s` : error.message, missing: false };
  } finally {
    clearTimeout(timer);
  }
}

function message(status, text) {
  try {
    return `${status}: ${JSON.parse(text).error.message}`;
  } catch {
    return `status ${status}`;
  }
}

// The text format of Prometheus: name -> [{labels, value}]. Labels are read as they are written, escapes undone.
function series(text) {
  const found = new Map();
  for (const line of text.split('\n')) {
    const parts = line.match(/^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)/);
    if (!parts) continue;
    const labels = {};
    for (const [, name, value] of (parts[2] ?? '').matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)) {
      labels[name] = value.replace(/\\(.)/g, (_, c) => (c === 'n' ? '\n' : c));
    }
    const value = { '+Inf': Infinity, '-Inf': -Infinity }[parts[3]] ?? Number(parts[3]);
    if (!found.has(parts[1])) found.set(parts[1], []);
    found.get(parts[1]).push({ labels, value });
  }
  return found;
}
