// The page of `ipctl --web`. It reads one stream of samples (/events) and draws what the newest says; it keeps the past
// itself. What changes something goes to /ask/…, after a question.
"use strict";

const token = new URLSearchParams(location.search).get("token") ?? "";
const KEPT_SLICES = 200_000, KEPT_POINTS = 4000;
const $ = id => document.getElementById(id);

let sample = null;       // the newest
let points = [];         // [time, waiting, running, completed, failed, aborted], oldest first
let slices = [];         // work that ended, oldest first
const kinds = [];        // of tasks; in a slice `kind` is a place in this list
const hues = new Map();  // of the kinds in the picture
let rates = new Map();   // of submissions: id → [[time, done], …] of the last seconds
const view = { span: 60, end: null };   // of the stream: seconds shown, and until when (null: now)

// The stream of samples.

function connect() {
  const source = new EventSource("events?token=" + encodeURIComponent(token));
  source.addEventListener("open", () => link("live", "live"));
  source.addEventListener("error", () => {
    const refused = source.readyState === EventSource.CLOSED;
    link("lost", refused ? "no answer: the controller is gone, or has another token now (ipclient web tells it)" : "no answer from the controller: trying again");
    if (refused) setTimeout(connect, 5000);
  });
  source.addEventListener("past", event => {
    const past = JSON.parse(event.data);
    points = past.points;
    slices = [];
    keep(past.slices);
    document.body.classList.toggle("readonly", past.readonly);
    $("add").hidden = !past.adds;
    if (followed?.lost) follow(followed.id);
  });
  source.addEventListener("sample", event => {
    sample = JSON.parse(event.data);
    remember(sample);
    tellSample(sample);
    if (graph) readGraph();
  });
}

function link(kind, text) {
  $("link").className = kind;
  document.body.classList.toggle("lost", kind === "lost");
  $("link").textContent = text;
}

function keep(more) {
  for (const slice of more) slices.push({ ...slice, kind: numberOf(slice.kind) });
  if (slices.length > KEPT_SLICES) slices.splice(0, slices.length - KEPT_SLICES);
}

const numbers = new Map();
function numberOf(kind) {
  if (!numbers.has(kind)) numbers.set(kind, kinds.push(kind) - 1);
  return numbers.get(kind);
}

function remember(now) {
  const t = now.tasks;
  points.push([now.time, t.ready + t.blocked, t.running + t.direct, t.completed, t.failed, t.aborted]);
  if (points.length > KEPT_POINTS) points.splice(0, points.length - KEPT_POINTS);
  keep(now.slices);
  const known = new Map();
  for (const row of now.submissions) {
    const seen = (rates.get(row.id) ?? []).filter(([time]) => time > now.time - 10);
    seen.push([now.time, done(row)]);
    known.set(row.id, seen);
  }
  rates = known;
}

const done = row => row.completed + row.failed + row.aborted;

// A second, over the last points within `seconds`.
function rate(of, seconds = 3) {
  if (of.length < 2) return 0;
  const last = of[of.length - 1];
  let first = of.findIndex(point => point[0] >= last[0] - seconds);
  if (first < 0 || first > of.length - 2) first = of.length - 2;
  const time = last[0] - of[first][0];
  return time > 0 ? (last[1] - of[first][1]) / time : 0;
}

const ended = () => points.slice(-40).map(p => [p[0], p[3] + p[4] + p[5]]);

// Words for numbers.

const count = n => n.toLocaleString("en");
const tasksOf = n => `${count(n)} ${n === 1 ? "task" : "tasks"}`;
const perSecond = n => n >= 100 ? count(Math.round(n)) : n >= 0.05 || n === 0 ? n.toFixed(1) : n.toFixed(3);

function time(seconds) {
  const s = Math.max(0, seconds);
  if (s < 10) return s.toFixed(1) + " s";
  if (s < 120) return Math.round(s) + " s";
  if (s < 7200) return Math.round(s / 60) + " min";
  if (s < 172800) return (s / 3600).toFixed(1) + " h";
  return Math.round(s / 86400) + " d";
}

const clock = seconds => new Date(seconds * 1000).toLocaleTimeString();

// What the newest sample says.

function tellSample(now) {
  link("live", "live");
  $("about").textContent = `· up ${time(now.uptime)} · ${now.scheme} · ${now.clients} ${now.clients === 1 ? "client" : "clients"} · version ${now.version}`;
  number("ready", now.tasks.ready);
  number("blocked", now.tasks.blocked);
  number("running", now.tasks.running + now.tasks.direct);
  number("completed", now.tasks.completed);
  number("failed", now.tasks.failed);
  number("aborted", now.tasks.aborted);
  number("engine-count", now.engines.length);
  $("rate").textContent = perSecond(rate(ended()));
  fill($("troubles"), now.troubles.map(text => element("li", {}, text)));
  tellRows(now);
}

function tellRows(now) {
  table("submissions", now.submissions.toReversed(), row => row.id, submission);
  table("failures", now.failures.toReversed(), row => row.text, failure);
  table("engines", now.engines, row => String(row.id), engine);
  table("hosts", now.hosts, row => row.host, host);
  redraw();
}

function number(id, value) {
  $(id).textContent = count(value);
  $(id).dataset.value = value;
}

function element(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else node.setAttribute(key, value);
  }
  node.append(...children);
  return node;
}

function fill(node, children) {
  node.replaceChildren(...children);
}

// How many rows of each table are shown: what is below them stays in reach.
const listed = new Map([["submissions", 20], ["failures", 20], ["engines", 100], ["hosts", 100]]);
const MORE = 100;

function chosen(rows) {
  const words = $("only").value.trim().toLowerCase();
  const texts = row => [row.id, ...Object.values(row).filter(value => typeof value === "string")].join("\n").toLowerCase();
  return words ? rows.filter(row => texts(row).includes(words)) : rows;
}

// Rows stay the same elements while they say the same: what is selected, focused or pressed is not lost.
function table(id, rows, key, cells) {
  const body = $(id).tBodies[0];
  const old = new Map([...body.rows].map(row => [row.dataset.key, row]));
  const found = chosen(rows);
  const list = found.slice(0, listed.get(id)).map(row => {
    const [texts, make] = cells(row);
    const said = JSON.stringify(texts);
    let line = old.get(key(row));
    if (line?.dataset.said !== said) {
      const fresh = element("tr", { "data-key": key(row), "data-said": said }, ...make());
      const focused = [...line?.querySelectorAll("button") ?? []].indexOf(document.activeElement);
      line?.replaceWith(fresh);
      line = fresh;
      line.querySelectorAll("button")[focused]?.focus();
    }
    return line;
  });
  // Those that stay are not moved for others: a row that is moved loses the focus.
  const focused = document.activeElement, kept = new Set(list);
  for (const line of [...body.rows]) if (!kept.has(line)) line.remove();
  list.forEach((line, at) => { if (body.rows[at] !== line) body.insertBefore(line, body.rows[at] ?? null); });
  if (body.contains(focused)) focused.focus({ preventScroll: true });
  $(id).classList.toggle("filled", rows.length > 0);
  const [rest, more] = rests.get(id), cut = list.length < found.length;
  rest.textContent = cut ? `The first ${count(list.length)} of ${count(found.length)} rows.`
    : found.length < rows.length ? `${count(found.length)} of ${count(rows.length)} rows have these words.` : "";
  more.hidden = !cut;
  rest.parentNode.hidden = !rest.textContent;
}

const rests = new Map([...listed.keys()].map(id => {
  const show = () => { listed.set(id, listed.get(id) + MORE); if (sample) tellRows(sample); };
  const rest = element("span"), more = element("button", { type: "button", onclick: show }, `show ${MORE} more`);
  $(id).parentNode.after(element("p", { class: "tools rest", id: id + "-rest" }, rest, more));
  return [id, [rest, more]];
}));

const n = text => element("td", { class: "n" }, String(text));

function submission(row) {
  const finished = done(row), open = row.ended === null;
  const speed = rate(rates.get(row.id) ?? [], 10);
  const left = open && speed > 0 ? `, ${time((row.total - finished) / speed)} left` : "";
  const took = time((row.ended ?? sample.time) - row.begun);
  const pace = open ? perSecond(speed) : perSecond(finished / Math.max(row.ended - row.begun, 0.001));
  const texts = [row.what, finished, row.total, row.failed, row.aborted, pace, took + left, open, row.dependent];
  return [texts, () => {
    const part = (kind, value) => {
      const piece = element("i", { class: kind });
      piece.style.width = 100 * value / row.total + "%";
      return piece;
    };
    const bar = element("div", { class: "bar", title: `${count(finished)} of ${count(row.total)} ended` },
      part("ok", row.completed), part("failed", row.failed), part("aborted", row.aborted));
    const stop = () => change("abort_request", { session: row.session, kill: true },
      `Abort what is unfinished of this client, ${tasksOf(row.total - finished)}? Running ones are killed.`);
    const button = open ? [element("button", { type: "button", class: "change", onclick: stop }, "abort")] : [];
    if (row.dependent) button.unshift(element("button", { type: "button", class: "graph", onclick: () => openGraph(row) }, "graph"), " ");
    return [element("td", { class: "cmd" }, row.what), element("td", {}, bar),
      n(`${count(finished)} / ${count(row.total)}`), n(count(row.failed)), n(count(row.aborted)), n(pace),
      n(took + left), element("td", { class: "one" }, ...button)];
  }];
}

function failure(row) {
  const ago = time(sample.time - row.last) + " ago";
  return [[row.count, ago, row.ids], () => {
    const again = () => change("resubmit_request", { msg_ids: row.ids },
      `Submit ${tasksOf(row.ids.length)} again?`);
    const button = row.ids.length ? [element("button", { type: "button", class: "change", onclick: again },
      `run ${row.ids.length === row.count ? "" : "the last "}${row.ids.length} again`)] : [];
    const look = row.ids.slice(-1).map(id =>
      element("button", { type: "button", onclick: () => find(id) }, "look at one"));
    return [element("td", { class: "cmd" }, row.text), n(count(row.count)), element("td", { class: "one" }, ago),
      element("td", { class: "one" }, ...look, " ", ...button)];
  }];
}

function engine(row) {
  const since = row.since == null ? "" : time(sample.time - row.since);
  const what = (row.leaving ? "leaves when this has ended: " : "") + (row.what ?? "");
  return [[row.outstanding, row.completed, what, since, row.task, row.leaving], () => [n(row.id), element("td", {}, row.host),
    element("td", {}, row.kind), n(count(row.outstanding)), n(count(row.completed)),
    element("td", { class: "cmd", title: row.task ?? "" }, what), n(since),
    element("td", { class: "one" }, element("button", { type: "button", class: "change", onclick: () => remove(row) }, row.leaving ? "stop now" : "remove"))]];
}

function remove(row) {
  // Others than ours, and those that libzmq feeds, know nothing but an end at once.
  const now = row.leaving || row.kind !== "ipengine" || sample.scheme === "pure";
  const ends = now ? "It stops what it runs, which runs again elsewhere if it may (retries, max_crashes), and else fails."
    : "It is given nothing more, ends what it runs, and then goes; what it has not begun goes to other engines.";
  change("scale_request", { remove: [row.id], now }, `Remove engine ${row.id} (${row.host})${row.leaving ? " at once" : ""}? ${row.outstanding ? ends : "It has nothing to do."}`);
}
$("add").addEventListener("click", () => change("scale_request", { add: 1 }, "Start another engine on the controller's host?"));

function host(row) {
  const of = pair => pair?.[1] ? `${Math.round(100 * pair[0] / pair[1])} % of ${(pair[1] / 2 ** 30).toFixed(1)} GiB` : "";
  const load = row.load ? [`${Math.round(100 * row.load.cpu)} %`, of(row.load.memory), of(row.load.disk)] : ["", "", ""];
  return [[row.engines, row.busy, load], () => [element("td", {}, row.host), n(row.engines), n(row.busy), ...load.map(n)]];
}

// Requests.

class Lost extends Error {}

async function ask(name, content) {
  const response = await fetch("ask/" + name, {
    method: "POST",
    headers: { "Content-Type": "application/json", Authorization: "Bearer " + token },
    body: JSON.stringify(content),
  }).catch(() => { throw new Lost("The controller does not answer."); });
  if (!response.ok) throw new Error(await response.text());
  const answer = await response.json();
  if (answer.status === "error") throw new Error(`${answer.ename}: ${answer.evalue}`);
  return answer;
}

function change(name, content, question) {
  const dialog = $("ask");
  $("question").textContent = question;
  dialog.returnValue = "no";
  dialog.onclose = async () => {
    if (dialog.returnValue !== "yes") return;
    try {
      const answer = await ask(name, content);
      say({
        abort_request: () => `Aborted ${count(answer.aborted)} that waited; ${count(answer.stopping)} that run are being stopped.`,
        resubmit_request: () => {
          const ids = Object.values(answer.resubmitted);
          return `Submitted again: ${ids.slice(0, 3).join(", ")}${ids.length > 3 ? ` and ${ids.length - 3} more` : ""}`;
        },
        scale_request: () => answer.added ? "Another engine is being started." : `Engine ${answer.removed.join(", ")} ${content.now ? "was told to end" : "goes when it has ended what it runs"}.`,
      }[name]());
    } catch (error) {
      say(error.message);
    }
  };
  dialog.showModal();
}

// What became of a request stays in sight for a while, wherever the reader is; what is known of a task stands in its own place.
let saidUntil = null;
function say(text) {
  $("said").textContent = text;
  $("said").hidden = false;
  clearTimeout(saidUntil);
  saidUntil = setTimeout(() => { $("said").hidden = true; }, 15_000);
}

// One task is shown at a time, as it stands now, until another is looked for: its id, and whether the controller was lost meanwhile.
let followed = null;

function find(id, keepHits = false) {
  $("id").value = id;
  if (!keepHits) {
    fill($("hits"), []);
    $("more").hidden = true;
  }
  $("found").textContent = "…";
  taskButtons(null);
  $("find").scrollIntoView({ block: "nearest" });
  follow(id);
}

function follow(id) {
  const mine = followed = { id, lost: false };
  const found = text => {
    if (followed !== mine) return;
    // Who has scrolled to its end sees what comes.
    const box = $("found"), low = box.scrollTop > 0 && box.scrollTop + box.clientHeight > box.scrollHeight - 8;
    box.textContent = text;
    if (low) box.scrollTop = box.scrollHeight;
  };
  show(mine, found).catch(error => {
    mine.lost = error instanceof Lost;
    if (!mine.lost) found(error.message);
  });
}

// What may be done about the task that is shown.
function taskButtons(state) {
  $("task-abort").hidden = state !== "running" && state !== "waiting";
  $("task-again").hidden = state !== "done";
}

// Tasks with these words in them: those of the newest sample, then those of the history, a part at a time.
async function search(mine, found) {
  const words = mine.id;
  const has = text => text?.toLowerCase().includes(words.toLowerCase());
  const now = [
    ...sample.engines.filter(row => row.task && has(row.what)).map(row => [row.task, `runs on engine ${row.id}`, row.what]),
    ...sample.failures.filter(row => row.ids.length && has(row.text)).map(row => [row.ids.at(-1), `the last of ${tasksOf(row.count)} that failed`, row.text]),
  ];
  const known = new Set(now.map(([id]) => id));
  const add = rows => $("hits").append(...rows.map(([id, said, what]) =>
    element("li", {}, element("button", { type: "button", onclick: () => find(id, true) }, id), ` ${said} `, element("code", {}, what))));
  add(now);
  const more = async before => {
    $("more").hidden = true;
    let why = "";
    const answer = await ask("search_request", { text: words, before }).catch(error => { why = error.message; });
    if (followed !== mine) return;
    const fresh = answer?.tasks.filter(task => !known.has(task.id)) ?? [];
    fresh.forEach(task => known.add(task.id));
    add(fresh.map(task => [task.id, task.state + (task.count > 1 ? `, ${tasksOf(task.count)}` : ""), task.name]));
    $("more").hidden = !answer?.before;
    $("more").onclick = () => more(answer.before);
    const where = why ? `Looked only at what runs and at failures: ${why}` : answer.before ? "There is more to look at." : "";
    found(`${known.size ? "Found" : "Nothing found"}: ${words}\n${where}`.trim());
  };
  await more("");
}

async function show(mine, found) {
  const id = mine.id, told = ["", ""];
  let seen = [0, 0], what = sample?.engines.find(row => row.task === id)?.what;
  while (followed === mine) {
    const why = await ask("explain_request", { msg_id: id });
    if (why.state === "unknown" && sample) return search(mine, found);
    // Its command is in the history, if there is one.
    what ??= await ask("graph_request", { msg_id: id, tasks: 1 }).then(graph => graph.tasks.find(task => task.id === id || task.id === id.replace(/:\d+$/, ""))?.name ?? "", () => "");
    const lines = [`${id}: ${why.state}`, ...what ? [what] : [], why.text, ...why.engines.map(([name, reason]) => `  engine ${name}: ${reason}`)];
    const add = (key, value) => {
      if (value !== null && value !== "" && !(Array.isArray(value) && !value.length)) {
        lines.push(`${key}: ${typeof value === "string" ? value : JSON.stringify(value)}`);
      }
    };
    if (why.state === "running") {
      // Engines of other makes do not tell.
      const output = await ask("output_request", { msg_id: id, seen }).catch(() => ({ running: false, text: [] }));
      output.text.forEach((text, stream) => { told[stream] = (told[stream] + text).slice(-65536); });
      seen = output.running ? output.seen : seen;
      told.forEach((text, stream) => add(["stdout", "stderr"][stream], text));
    } else if (why.state === "done") {
      const reply = await ask("result_request", { msg_ids: [id], buffers: false });
      Object.entries(reply[id]?.result_content ?? {}).forEach(([key, value]) => add(key, value));
    }
    if (followed === mine) taskButtons(why.state);
    // What colours a terminal is noise here.
    found(lines.join("\n").replace(/\x1b\[[0-9;?]*[A-Za-z]/g, ""));
    if (why.state !== "running" && why.state !== "waiting") return;
    await new Promise(done => setTimeout(done, 1000));
  }
}

// The graph of one submission: asked for while it is open, and only when a sample says that something has moved.

const STATES = {
  waiting: ["○", "waiting"], running: ["▶", "running"], ok: ["✓", "ended well"],
  failed: ["✗", "failed"], aborted: ["⊘", "aborted"], impossible: ["!", "can never run"],
};
// With more tasks than this in all, or in one layer, a layer is one bar; more layers than that are not drawn.
const DRAWN = 300, TALL = 24, LAYERS = 60;
const CELL = { width: 164, height: 30 }, BOX = { width: 134, height: 24 };
const WORST = ["failed", "impossible", "aborted", "running", "waiting", "ok"];
let graph = null;

function openGraph(row) {
  graph = { id: row.id, total: row.total, mark: null, next: 0, asked: false, tasks: [], shape: null, marks: [], at: [0, 0] };
  $("graph-of").textContent = row.what;
  fill($("graph-key"), []);
  fill($("graph-place"), []);
  $("graph-note").textContent = "…";
  $("graph-task").textContent = "\u00a0";
  $("graph").hidden = false;
  $("graph").scrollIntoView({ block: "nearest" });
  $("graph-close").focus({ preventScroll: true });
  readGraph();
}

async function readGraph() {
  const open = graph, row = sample.submissions.find(row => row.id === open.id), t = sample.tasks;
  open.total = row?.total ?? open.total;
  const ended = row && [row.total, row.completed, row.failed, row.aborted];
  const moving = row?.ended === null && [t.ready, t.blocked, t.running, sample.engines.map(e => e.task)];
  const mark = JSON.stringify([ended, moving]);
  if (document.hidden || open.asked || mark === open.mark || sample.time < open.next) return;
  Object.assign(open, { asked: true, mark, next: sample.time + 0.5 });
  try {
    const answer = await ask("graph_request", { msg_id: open.id, tasks: open.total });
    if (graph === open) drawGraph(answer);
    // The history may be a moment behind the last sample that differs.
    if (!moving && answer.tasks.some(isOpen)) Object.assign(open, { mark: null, next: sample.time + 2 });
  } catch (error) {
    // Not asked again until it is opened again, or the controller is back.
    if (error instanceof Lost) open.mark = null;
    else open.next = Infinity;
    if (graph === open) $("graph-note").textContent = error.message;
  }
  open.asked = false;
}

// A task's layer is one more than that of the last one it waits for; what has no such relation is left out.
function layersOf(tasks) {
  const linked = tasks.map(task => task.after.length > 0);
  const depth = [], spot = [], layers = [];
  tasks.forEach((task, at) => {
    depth[at] = 0;
    for (const before of task.after) {
      linked[before] = true;
      depth[at] = Math.max(depth[at], depth[before] + 1);
    }
  });
  tasks.forEach((_, at) => linked[at] && (layers[depth[at]] ??= []).push(at));
  for (const layer of layers) {
    // Beside what it waits for: fewer lines cross.
    const mean = at => tasks[at].after.reduce((sum, before) => sum + spot[before], 0) / (tasks[at].after.length || 1);
    const key = new Map(layer.map(at => [at, mean(at)]));
    layer.sort((a, b) => key.get(a) - key.get(b) || a - b);
    layer.forEach((at, place) => { spot[at] = place - layer.length / 2; });
  }
  return layers;
}

const isOpen = task => task.state === "waiting" || task.state === "running";
const sizeOf = tasks => tasks.reduce((sum, task) => sum + task.count, 0);

function drawGraph({ tasks, whole }) {
  const all = layersOf(tasks), linked = all.flat();
  const open = all.findIndex(layer => layer.some(at => isOpen(tasks[at])));
  const from = Math.max(0, Math.min(open - LAYERS / 4, all.length - LAYERS));
  const layers = all.slice(from, from + LAYERS), many = linked.length > DRAWN;
  const columns = layers.map(layer => many || layer.length > TALL ? [layer] : layer.map(at => [at]));
  const alone = sizeOf(tasks) - sizeOf(linked.map(at => tasks[at]));
  $("graph-note").textContent = [
    !whole && `${count(sizeOf(tasks))} of ${count(graph.total)} tasks: those around the first that has not ended.`,
    !linked.length && "None of these tasks waits for another of them.",
    many ? `One bar for each layer, as there are more than ${DRAWN} tasks.`
      : columns.some(column => column[0].length > 1) && `A layer of more than ${TALL} tasks is one bar.`,
    all.length > LAYERS && `Layers ${from + 1} to ${from + layers.length} of ${count(all.length)}.`,
    linked.length && alone && `${count(alone)} that neither wait nor are waited for are left out.`,
  ].filter(Boolean).join(" ");
  fill($("graph-key"), Object.entries(STATES).map(([state, [sign, words]]) => {
    const size = sizeOf(tasks.filter(task => task.state === state));
    return element("span", { class: "sign " + state, "data-state": state, "data-value": size }, element("b", {}, sign), ` ${words} ${count(size)}`);
  }));
  graph.tasks = tasks;
  // While the same tasks stand in the same places, only what they say changes.
  const shape = JSON.stringify(columns.map(column => column.map(cell => cell.map(at => [tasks[at].id, tasks[at].after]))));
  if (shape !== graph.shape) buildGraph(columns);
  // It opens where something moves, and is not moved under the reader's eyes later.
  if (graph.shape === null) $("graph-place").scrollLeft = (open - from - 1) * CELL.width;
  graph.shape = shape;
  for (const mark of graph.marks.flat()) mark.tell();
}

function svg(name, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

function buildGraph(columns) {
  const rows = Math.max(1, ...columns.map(column => column.length)), half = BOX.height / 2;
  const places = new Map(), edges = new Set();
  columns.forEach((column, x) => column.forEach((cell, y) => {
    const place = [x * CELL.width + 4, (y + (rows - column.length) / 2) * CELL.height + 4];
    for (const at of cell) places.set(at, place);
  }));
  for (const [at, [x, y]] of places) {
    for (const [a, b] of graph.tasks[at].after.map(before => places.get(before)).filter(Boolean)) {
      edges.add(`M${a + BOX.width} ${b + half}C${a + BOX.width + 16} ${b + half} ${x - 16} ${y + half} ${x} ${y + half}`);
    }
  }
  const focused = document.activeElement?.closest("#graph-place g")?.dataset.id;
  graph.marks = columns.map((column, x) => column.map((cell, y) => markOf(cell, [x, y], places.get(cell[0]))));
  fill($("graph-place"), [svg("svg", {
    width: columns.length * CELL.width, height: rows * CELL.height + 4, role: "group",
    "aria-label": "Tasks by layer: arrow keys move, Enter looks at one",
  }, svg("path", { d: [...edges].join("") }), ...graph.marks.flat().map(mark => mark.node))]);
  const again = graph.marks.flat().find(mark => mark.node.dataset.id === focused);
  stand(again?.at ?? [0, 0], again !== undefined);
}

// A task, as its sign and the start of its name; or a layer, as a bar of how many are in which state.
function markOf(cell, at, [x, y]) {
  const title = svg("title"), sign = svg("text", { x: 7, y: 16 }), single = cell.length === 1;
  const { id, name } = graph.tasks[cell[0]];
  const parts = single ? [] : Object.keys(STATES).map(state => [state, svg("rect", { class: state, y: BOX.height - 6, height: 6 })]);
  const node = svg("g", { role: "button", tabindex: -1, "data-id": id, transform: `translate(${x} ${y})` },
    title, svg("rect", { class: "box", width: BOX.width, height: BOX.height, rx: 4 }), ...parts.map(([, part]) => part), sign,
    ...(single ? [svg("text", { x: 23, y: 16 }, name.length > 15 ? name.slice(0, 14) + "…" : name)] : []));
  const tell = () => {
    const tasks = cell.map(at => graph.tasks[at]), all = sizeOf(tasks);
    const sizes = Object.fromEntries(Object.keys(STATES).map(state => [state, sizeOf(tasks.filter(task => task.state === state))]));
    const there = Object.entries(STATES).filter(([state]) => sizes[state]);
    const words = single ? there.map(([, [, words]]) => words) : there.map(([state, [, words]]) => `${count(sizes[state])} ${words}`);
    const said = (single ? `${id}: ${name}${all > 1 ? ` (${count(all)} tasks)` : ""}, ` : `${count(all)} tasks: `) + words.join(", ");
    if (node.dataset.said === said) return;
    const state = single ? tasks[0].state : "layer";
    node.setAttribute("class", state);
    node.setAttribute("aria-label", said);
    Object.assign(node.dataset, { state, said });
    title.textContent = said;
    sign.textContent = there.map(([state, [sign]]) => single ? sign : sign + count(sizes[state])).join(" ");
    let from = 0;
    for (const [state, part] of parts) {
      part.setAttribute("x", BOX.width * from / all);
      part.setAttribute("width", BOX.width * sizes[state] / all);
      from += sizes[state];
    }
    if (node === document.activeElement) $("graph-task").textContent = said;
  };
  // Of a layer, one that needs looking at.
  const look = () => find(WORST.flatMap(state => cell.map(at => graph.tasks[at]).filter(task => task.state === state))[0]?.id ?? id);
  return { node, at, tell, look };
}

// One of them is reached with Tab, the others from there with arrow keys.
function stand([x, y], focus) {
  const column = graph.marks[x], mark = column?.[Math.max(0, Math.min(y, column.length - 1))];
  if (!mark) return;
  graph.marks[graph.at[0]]?.[graph.at[1]]?.node.setAttribute("tabindex", -1);
  mark.node.setAttribute("tabindex", 0);
  graph.at = mark.at;
  if (focus) mark.node.focus();
}

function listenGraph() {
  const place = $("graph-place");
  const on = (name, act) => place.addEventListener(name, event => {
    const mark = graph?.marks.flat().find(mark => mark.node.contains(event.target));
    if (mark) act(mark, event);
  });
  on("pointerover", mark => { $("graph-task").textContent = mark.node.dataset.said; });
  on("focusin", mark => { stand(mark.at, false); $("graph-task").textContent = mark.node.dataset.said; });
  on("click", mark => mark.look());
  on("keydown", ({ at: [x, y], look }, event) => {
    const act = {
      ArrowLeft: () => stand([x - 1, y], true), ArrowRight: () => stand([x + 1, y], true),
      ArrowUp: () => stand([x, y - 1], true), ArrowDown: () => stand([x, y + 1], true), Enter: look, " ": look,
    }[event.key];
    if (act) { event.preventDefault(); act(); }
  });
  $("graph-close").addEventListener("click", () => { graph = null; $("graph").hidden = true; });
}

// Pictures.

const style = name => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();

function canvas(id) {
  const node = $(id), ratio = devicePixelRatio || 1;
  const width = node.clientWidth, height = node.clientHeight;
  if (node.width !== Math.round(width * ratio) || node.height !== Math.round(height * ratio)) {
    node.width = Math.round(width * ratio);
    node.height = Math.round(height * ratio);
  }
  const pen = node.getContext("2d");
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, width, height);
  pen.font = "11px system-ui, sans-serif";
  return [pen, width, height];
}

let waiting = false;
function redraw() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    if (!sample) return;
    // Over stretches of two seconds: samples come faster, and what ends in a quarter of a second is noise.
    const speeds = [];
    let last = null;
    for (const p of points) {
      if (last && p[0] - last[0] < 1.9) continue;
      if (last) speeds.push([p[0], Math.max(0, (p[3] + p[4] + p[5] - last[3] - last[4] - last[5]) / (p[0] - last[0]))]);
      last = p;
    }
    lines("queue", [["waiting", "aborted", points.map(p => [p[0], p[1]])], ["running", "ok", points.map(p => [p[0], p[2]])]]);
    lines("rates", [["ended", "ok", speeds]]);
    stream();
  });
}

// Lines over the last ten minutes; each is named at its end.
function lines(id, series) {
  const [pen, width, height] = canvas(id);
  const left = 8, right = width - 92, top = 14, bottom = height - 18;
  const end = sample.time, begin = Math.max(end - 600, points[0]?.[0] ?? end - 1);
  const shown = series.map(([name, color, line]) => [name, color, line.filter(p => p[0] >= begin)]);
  const most = Math.max(1, ...shown.map(([, , line]) => line.reduce((most, p) => Math.max(most, p[1]), 0)));
  const x = time => left + (right - left) * (time - begin) / Math.max(end - begin, 1e-9);
  const y = value => bottom - (bottom - top) * value / most;
  pen.strokeStyle = style("line");
  pen.fillStyle = style("quiet");
  pen.lineWidth = 1;
  for (const value of [0, most]) {
    pen.beginPath();
    pen.moveTo(left, y(value) + 0.5);
    pen.lineTo(right, y(value) + 0.5);
    pen.stroke();
  }
  pen.fillText(perSecond(most).replace(/\.0$/, ""), left, top - 3);
  pen.fillText(clock(begin), left, height - 4);
  pen.textAlign = "right";
  pen.fillText(clock(end), right, height - 4);
  pen.textAlign = "left";
  let below = -Infinity;
  const labels = shown.filter(([, , line]) => line.length)
    .map(([name, color, line]) => [y(line[line.length - 1][1]), name, color, line]).sort((a, b) => a[0] - b[0]);
  for (const [index, [at, name, color, line]] of labels.entries()) {
    pen.strokeStyle = pen.fillStyle = style(color);
    pen.lineWidth = 1.8;
    pen.beginPath();
    line.forEach((p, i) => i ? pen.lineTo(x(p[0]), y(p[1])) : pen.moveTo(x(p[0]), y(p[1])));
    pen.stroke();
    // Names do not cover each other, and there is room for those that come below.
    const place = Math.max(Math.min(at + 4, bottom + 4 - 13 * (labels.length - 1 - index)), below + 13);
    below = place;
    pen.fillText(`${name} ${perSecond(line[line.length - 1][1]).replace(/\.0$/, "")}`, right + 6, place);
  }
}

// Work by engine: a row each, a box for what it did in one go.
let rowsOfStream = [];
function stream() {
  const seen = visible();
  tint(seen);
  const now = chosen(sample.engines), gone = now.length === sample.engines.length ? seen.map(s => s.engine) : [];
  const every = [...new Set([...now.map(e => e.id), ...gone])].sort((a, b) => a - b);
  const engines = every.slice(0, 64);
  const high = engines.length > 24 ? 8 : 16;
  $("stream").style.height = Math.max(3, engines.length) * high + 22 + "px";
  const [pen, width, height] = canvas("stream");
  const left = 40, end = view.end ?? sample.time, begin = end - view.span;
  const x = time => left + (width - left) * (time - begin) / view.span;
  const row = new Map(engines.map((id, at) => [id, at]));
  rowsOfStream = { engines, high, left, begin, width };
  pen.fillStyle = style("quiet");
  engines.forEach((id, at) => (at % (high < 12 ? 4 : 1) === 0) && pen.fillText(String(id), 6, at * high + high - 3));
  const marks = width < 480 ? 1 : 4;
  for (let at = 0; at <= marks; at++) {
    const time = begin + view.span * at / marks;
    pen.textAlign = at === marks ? "right" : "left";
    pen.fillText(clock(time), at === marks ? width - 4 : x(time), height - 5);
  }
  pen.textAlign = "left";
  const colors = [...Array(HUES + 1).keys()].map(n => style("kind-" + n)), failed = style("failed"), gap = style("panel");
  const ratio = devicePixelRatio || 1, snap = at => Math.round(at * ratio) / ratio;
  // What lies in the last pixel drawn of its row is not seen.
  let drawn = new Map();
  const box = (id, from, to, ...parts) => {
    const at = row.get(id);
    if (at === undefined || to < begin || from > end) return;
    const a = Math.max(left, snap(x(from))), b = Math.min(width, Math.max(snap(x(to)), a + 1)), last = drawn.get(id) ?? -1;
    if (b <= last && a >= last - 1) return;
    drawn.set(id, b);
    const top = at * high + 1, tall = (high - 2) / parts.length;
    parts.forEach((color, n) => {
      pen.fillStyle = color;
      pen.fillRect(a, top + n * tall, Math.max(0.7, b - a - (b - a > 3 ? 0.7 : 0)), tall);
    });
  };
  pen.globalAlpha = 0.45;
  for (const e of sample.engines) if (e.since != null) box(e.id, e.since, sample.time, colors[hueOf(numberOf(e.task_kind))]);
  pen.globalAlpha = 1;
  drawn = new Map();
  // Its colour says of what kind a task is, its shape how it ended; what did not end well is not hidden by its neighbours.
  for (const s of seen) if (s.outcome === "ok") box(s.engine, s.begun, s.ended, colors[hueOf(s.kind)]);
  drawn = new Map();
  for (const s of seen) if (s.outcome !== "ok") box(s.engine, s.begun, s.ended, colors[hueOf(s.kind)], s.outcome === "failed" ? failed : gap);
  const cut = engines.length < every.length ? `, the first ${engines.length} of ${every.length} engines` : "";
  $("span").textContent = `${time(view.span)}${view.end === null ? "" : ", until " + clock(view.end)}${cut}`;
  $("follow").setAttribute("aria-pressed", String(view.end === null));
}

// Colours go to the kinds with the most work in the picture, and stay theirs while they are in it.
const HUES = 7;
const hueOf = kind => hues.get(kind) ?? HUES;

function tint(seen) {
  const work = [];
  const add = (kind, seconds) => { work[kind] = (work[kind] ?? 0) + seconds; };
  for (const s of seen) add(s.kind, s.ended - s.begun);
  for (const e of sample.engines) if (e.since != null) add(numberOf(e.task_kind), sample.time - e.since);
  const there = Object.keys(work).map(Number).sort((a, b) => work[b] - work[a]);
  for (const kind of hues.keys()) if (work[kind] === undefined) hues.delete(kind);
  for (const kind of there) {
    if (hues.size === HUES) break;
    const taken = [...hues.values()];
    if (!hues.has(kind)) hues.set(kind, [...Array(HUES).keys()].find(hue => !taken.includes(hue)));
  }
  const rest = there.length - hues.size;
  const said = [...hues].sort((a, b) => a[1] - b[1]).map(([kind, hue]) => [hue, kinds[kind] || "?"]);
  if (rest) said.push([HUES, rest === 1 ? "another" : `${rest} others`]);
  if ($("kinds").dataset.said === JSON.stringify(said)) return;
  $("kinds").dataset.said = JSON.stringify(said);
  fill($("kinds"), said.map(([hue, name]) => element("span", { class: `key kind-${hue}` }, name)));
}

// Slices come in the order in which they ended: what ended before the picture begins is not looked at.
function visible() {
  const end = view.end ?? sample.time, begin = end - view.span;
  let low = 0, high = slices.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (slices[middle].ended < begin) low = middle + 1; else high = middle;
  }
  return low ? slices.slice(low) : slices;
}

function zoom(factor) {
  view.span = Math.min(86400, Math.max(0.5, view.span * factor));
  redraw();
}

function move(seconds) {
  const end = (view.end ?? sample?.time ?? 0) + seconds;
  view.end = end >= (sample?.time ?? 0) ? null : end;
  redraw();
}

function tell(event) {
  const { engines, high, left, begin, width } = rowsOfStream;
  if (!sample || !engines) return;
  const id = engines[Math.floor(event.offsetY / high)];
  const at = begin + view.span * (event.offsetX - left) / (width - left), pixel = view.span / (width - left);
  const hit = visible().findLast(s => s.engine === id && s.begun - pixel <= at && at <= s.ended + pixel);
  const now = sample.engines.find(e => e.id === id && e.since != null && e.since <= at);
  $("slice").textContent = hit
    ? `engine ${id}: ${hit.id}${hit.count > 1 ? ` and ${count(hit.count - 1)} more` : ""}, ${kinds[hit.kind]}, ${hit.outcome}, ${time(hit.ended - hit.begun)} from ${clock(hit.begun)}`
    : now ? `engine ${id}: ${now.what ?? now.task} runs for ${time(sample.time - now.since)}` : id === undefined ? "" : `engine ${id}`;
}

function listen() {
  const node = $("stream");
  let dragged = null;
  node.addEventListener("wheel", event => { event.preventDefault(); zoom(event.deltaY > 0 ? 1.25 : 0.8); }, { passive: false });
  node.addEventListener("pointerdown", event => { dragged = event.clientX; node.setPointerCapture(event.pointerId); });
  for (const end of ["pointerup", "pointercancel"]) node.addEventListener(end, () => { dragged = null; });
  node.addEventListener("pointermove", event => {
    if (dragged === null) return tell(event);
    move((dragged - event.clientX) * view.span / node.clientWidth);
    dragged = event.clientX;
  });
  node.addEventListener("keydown", event => {
    const act = { "+": () => zoom(0.8), "-": () => zoom(1.25), ArrowLeft: () => move(-view.span / 5), ArrowRight: () => move(view.span / 5) }[event.key];
    if (act) { event.preventDefault(); act(); }
  });
  $("closer").addEventListener("click", () => zoom(0.5));
  $("farther").addEventListener("click", () => zoom(2));
  $("follow").addEventListener("click", () => { view.end = view.end === null ? sample?.time ?? null : null; redraw(); });
  $("find").addEventListener("submit", event => { event.preventDefault(); if ($("id").value.trim()) find($("id").value.trim()); });
  $("only").addEventListener("input", () => { if (sample) tellRows(sample); });
  $("task-abort").addEventListener("click", () => change("abort_request", { msg_ids: [followed.id], kill: true }, `Abort ${followed.id}? If it runs, it is killed.`));
  $("task-again").addEventListener("click", () => change("resubmit_request", { msg_ids: [followed.id] }, `Submit ${followed.id} again?`));
  addEventListener("resize", redraw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
}

listen();
listenGraph();
connect();
