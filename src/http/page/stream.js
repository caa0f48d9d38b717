// The stream of events: one snapshot a second, and what happens in between. It says what state it is in, notices when it has
// gone quiet, and connects again by itself, each time a little later, so that a restarting sidecar is not stormed.

// Snapshots come once a second; this many without one, and the connection is not trusted any more.
const QUIET_MS = 6000;
const FIRST_RETRY_MS = 1000;
const LAST_RETRY_MS = 10000;

// A page that nobody looks at gives its connection back: browsers have six for one host, and forgotten pages would hold them.
const HIDDEN_MS = 60000;

// Other events than `snapshot`: something has changed, so the lists are asked for at once. An alert is told with its event.
const KINDS = ['alert', 'mode', 'queue', 'reload', 'rollout', 'rules', 'upstream'];

export function open({ onSnapshot, onEvent, onState }) {
  let source = null;
  let quiet = null;
  let retry = null;
  let wait = FIRST_RETRY_MS;

  function listen() {
    clearTimeout(quiet);
    quiet = setTimeout(() => lost('it has gone quiet'), QUIET_MS);
  }

  function connect() {
    onState({ name: 'connecting' });
    source = new EventSource('/api/v1/events');
    listen();
    const on = (kind, heard) => source.addEventListener(kind, (event) => {
      let data;
      try {
        data = JSON.parse(event.data);
      } catch {
        return lost('what came is no JSON');
      }
      heard(data);
    });
    on('snapshot', (snapshot) => {
      listen();
      wait = FIRST_RETRY_MS;
      onState({ name: 'live' });
      onSnapshot(snapshot);
    });
    for (const kind of KINDS) on(kind, (data) => onEvent(kind, data));
    source.addEventListener('error', () => lost('it was closed'));
  }

  function lost(why) {
    if (!source) return;
    source.close();
    source = null;
    clearTimeout(quiet);
    onState({ name: 'lost', why, next: Date.now() + wait });
    retry = setTimeout(connect, wait);
    wait = Math.min(wait * 2, LAST_RETRY_MS);
  }

  // A machine that slept, or a network that is back: no need to wait for the timer.
  function now() {
    if (source) return;
    clearTimeout(retry);
    wait = FIRST_RETRY_MS;
    connect();
  }

  let hidden = null;
  document.addEventListener('visibilitychange', () => {
    clearTimeout(hidden);
    if (document.hidden) hidden = setTimeout(pause, HIDDEN_MS);
    else now();
  });

  function pause() {
    clearTimeout(retry);
    clearTimeout(quiet);
    source?.close();
    source = null;
    onState({ name: 'paused' });
  }

  window.addEventListener('online', now);
  connect();
  return { now };
}
