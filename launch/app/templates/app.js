"use strict";
// The page of the application: shows what the server's session holds, plays
// one sound at a time, sends what the user does.

const $ = (query, inside = document) => inside.querySelector(query);
const make = (tag, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};
// Seconds of a recording, and bytes that the server takes.
const LONGEST = 12, MOST = 2 ** 27;
const NOTES = ["C", "C♯", "D", "E♭", "E", "F", "F♯", "G", "A♭", "A", "B♭", "B"];

let state = null;  // as the server described it last
let chosen = null;  // id of the candidate that keys act on
let locked = new Set();  // names of parts to keep
let shown = "";  // step and target that the fields are of

// Telling --------------------------------------------------------------------

const tell = (words) => {
  $("#error").textContent = words ?? "";
  $("#error").hidden = !words;
};

const send = async (address, body) => {
  try {
    const reply = await fetch(address, {
      method: "POST",
      body: body instanceof Blob ? body : JSON.stringify(body),
    });
    const said = await reply.json();
    tell(said.error);
    return !said.error;
  } catch {
    tell("The program does not answer: is it still running?");
    return false;
  }
};

const seconds = () => Number($("#played").seconds.value) || state?.seconds || 60;

// Sounds in ------------------------------------------------------------------

const wav = (buffer) => {
  const { length, sampleRate, numberOfChannels } = buffer;
  const mono = new Float32Array(length);
  for (let c = 0; c < numberOfChannels; c++) {
    buffer.getChannelData(c).forEach((x, i) => { mono[i] += x / numberOfChannels; });
  }
  const head = new DataView(new ArrayBuffer(44));
  const text = (at, letters) => [...letters].forEach(
    (letter, i) => head.setUint8(at + i, letter.charCodeAt(0)));
  text(0, "RIFF"); head.setUint32(4, 36 + 4 * length, true); text(8, "WAVEfmt ");
  head.setUint32(16, 16, true);
  head.setUint16(20, 3, true);  // floats
  head.setUint16(22, 1, true);
  head.setUint32(24, sampleRate, true);
  head.setUint32(28, 4 * sampleRate, true);
  head.setUint16(32, 4, true); head.setUint16(34, 32, true);
  text(36, "data"); head.setUint32(40, 4 * length, true);
  return new Blob([head, mono], { type: "audio/wav" });
};

const decoded = async (blob) => {
  const context = new AudioContext();
  try {
    return wav(await context.decodeAudioData(await blob.arrayBuffer()));
  } finally {
    context.close();
  }
};

const upload = async (blob, name) => {
  if (blob.size > MOST) {
    tell(`${name} has ${Math.round(blob.size / 1e6)} MB: cut out the one note ` +
      "that is to be matched.");
    return;
  }
  $("#hint").textContent = `reading ${name} …`;
  const query = new URLSearchParams({ name, seconds: seconds() });
  await send(`sound?${query}`, blob);
  $("#hint").textContent = hint();
};

const hint = () => `one note, up to ${state?.duration ?? 5} s of it`;

const take = async (file) => {
  if (!file) return;
  let sound = file;
  // What the server does not read, the browser may.
  if (/\.(m4a|mp4|aac|webm|opus)$/i.test(file.name)) {
    sound = await decoded(file).catch(() => file);
  }
  await upload(sound, file.name);
};

$("#file").addEventListener("change", async (event) => {
  await take(event.target.files[0]);
  event.target.value = "";
});
for (const kind of ["dragenter", "dragover"]) {
  addEventListener(kind, (event) => {
    event.preventDefault();
    document.body.classList.add("over");
  });
}
addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("over");
});
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("over");
  take(event.dataTransfer.files[0]);
});

let recorder = null;
$("#record").addEventListener("click", async () => {
  if (recorder) {
    recorder.stop();
    return;
  }
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ audio: {
      echoCancellation: false, noiseSuppression: false, autoGainControl: false,
    } });
  } catch {
    tell("No microphone may be used here: allow it in the browser, or drop a file.");
    return;
  }
  quiet();
  const parts = [], begun = performance.now();
  recorder = new MediaRecorder(stream);
  const clock = setInterval(() => {
    const passed = (performance.now() - begun) / 1000;
    $("#record").textContent = `Stop recording, ${passed.toFixed(1)} s`;
    if (passed > LONGEST) recorder.stop();
  }, 100);
  recorder.ondataavailable = (event) => parts.push(event.data);
  recorder.onstop = async () => {
    clearInterval(clock);
    stream.getTracks().forEach((track) => track.stop());
    recorder = null;
    $("#record").classList.remove("on");
    $("#record").textContent = "Record";
    try {
      await upload(await decoded(new Blob(parts)), "recording.wav");
    } catch {
      tell("The recording could not be read: try once more.");
    }
  };
  $("#record").classList.add("on");
  recorder.start();
});

// Sounds out -----------------------------------------------------------------

const player = new Audio();
const heard = new Map();  // addresses of sounds that were fetched, by id
let playing = null;

const row = (id) => id && (id[0] === "t"
  ? $("#target") : $(`#candidates [data-id="${id}"]`));

const quiet = () => {
  player.pause();
  row(playing)?.classList.remove("playing");
  playing = null;
};

const play = async (id, from = 0) => {
  quiet();
  if (!id) return;
  playing = id;
  row(id)?.classList.add("playing");
  if (!heard.has(id)) {
    const reply = await fetch(`sounds/${id}.wav?loud`);
    if (!reply.ok) {
      tell("This sound is there no more.");
      quiet();
      return;
    }
    heard.set(id, URL.createObjectURL(await reply.blob()));
  }
  if (playing !== id) return;
  player.src = heard.get(id);
  player.currentTime = from * (state?.step?.target.length ?? 0);
  // Another sound may have been asked for meanwhile.
  player.play().catch(() => {});
  follow();
};
const toggle = (id) => (playing === id ? quiet() : play(id));

const follow = () => {
  if (!playing) return;
  const at = player.currentTime / (player.duration || 1);
  row(playing)?.style.setProperty("--at", at);
  requestAnimationFrame(follow);
};
player.addEventListener("ended", quiet);

const listen = (element, id) => {
  $(".play", element).onclick = () => toggle(id());
  $(".picture", element).onclick = (event) => {
    const box = event.currentTarget.getBoundingClientRect();
    play(id(), (event.clientX - box.left) / box.width);
  };
};
listen($("#target"), () => state.step.target.id);

// The algorithm --------------------------------------------------------------

// Places nodes: what is heard at the bottom, what modulates above its target.
const placed = ({ nodes, edges }) => {
  const targets = nodes.map((_, n) => edges.filter((e) => e[0] === n).map((e) => e[1]));
  const depth = (n) => 1 + Math.max(-1, ...targets[n].map(depth));
  const across = [];
  let next = 0;
  const place = (n) => {
    const above = nodes.map((_, m) => m).filter(
      (m) => targets[m].length === 1 && targets[m][0] === n);
    above.forEach(place);
    across[n] = above.length
      ? (across[above[0]] + across[above.at(-1)]) / 2 : next++;
  };
  nodes.forEach((_, n) => { if (!targets[n].length) place(n); });
  // What has several targets stands above their middle, with its own above.
  nodes.forEach((_, n) => { if (targets[n].length > 1) place(n); });
  nodes.forEach((_, n) => {
    if (targets[n].length < 2) return;
    const mean = targets[n].reduce((sum, t) => sum + across[t], 0) / targets[n].length;
    const shift = mean - across[n];
    const move = (m) => {
      across[m] += shift;
      nodes.forEach((_, k) => { if (targets[k].length === 1 && targets[k][0] === m) move(k); });
    };
    move(n);
  });
  return nodes.map((_, n) => ({ x: across[n], y: depth(n) }));
};

const svg = (tag, attributes, ...children) => {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
};

const draw = (graph) => {
  const places = placed(graph), wide = 22, high = 22, half = 7;
  const columns = Math.max(...places.map((p) => p.x)) + 1;
  const rows = Math.max(...places.map((p) => p.y)) + 1;
  const x = (n) => (places[n].x + 0.5) * wide;
  const y = (n) => (rows - places[n].y - 0.5) * high + 4;
  const floor = rows * high + 3;
  const lines = graph.edges.map(([a, b]) =>
    `M${x(a)} ${y(a) + half}L${x(b)} ${y(b) - half}`);
  for (const [a, b] of graph.loops) {
    const side = x(a) + half + 3.5, top = y(b) - half - 3.5;
    lines.push(`M${x(a)} ${y(a) + half}v3.5H${side}V${top}H${x(b)}V${y(b) - half}`);
  }
  for (const n of graph.outputs) lines.push(`M${x(n)} ${y(n) + half}V${floor}`);
  const ends = graph.outputs.map(x);
  lines.push(`M${Math.min(...ends)} ${floor}H${Math.max(...ends)}`);
  const nodes = graph.nodes.map((name, n) => svg(
    "g", {
      class: `node${graph.outputs.includes(n) ? " heard" : ""}`, "data-module": name,
    },
    svg("rect", { x: x(n) - half, y: y(n) - half, width: 2 * half, height: 2 * half, rx: 2 }),
    svg("text", { x: x(n), y: y(n) + 0.5 }, name.replace(/\D/g, "") || name),
    svg("title", {}, `${name}: lock or unlock`)));
  const width = Math.max(columns * wide + 6, 90);
  const picture = svg("svg", {
    class: "graph", role: "img", "aria-label": graph.title,
    viewBox: `${(columns * wide - width) / 2} 0 ${width} ${Math.max(floor + 2, 70)}`,
  }, svg("title", {}, graph.title), svg("path", { d: lines.join("") }), ...nodes);
  picture.addEventListener("click", (event) => {
    const module = event.target.closest(".node")?.dataset.module;
    if (module) lock(state.parts.filter((p) => p.split(" ")[0] === module));
  });
  return picture;
};

// Candidates -----------------------------------------------------------------

const label = (id) => `#${id.slice(1)}`;
const rows = new Map();  // elements by id, so that they stay what they are

const download = (id, ending) => make("a", {
  href: `presets/${id}${ending}`, textContent: ending,
  download: `${state.step.target.name}-${id}${ending}`,
  title: `Download as ${ending}`,
});

const build = ({ id, graph }) => {
  const item = make("li", { className: "row", tabIndex: 0 });
  item.dataset.id = id;
  item.innerHTML = `
    <button class="play" type="button"></button>
    <div class="picture"><img><i class="head"></i><span class="label"></span></div>
    <div class="score"><strong></strong>
      <div class="bar"><i class="fill"></i><i class="tick"></i></div><small></small></div>
    <div class="algorithm"></div>
    <div class="actions"><button class="on" type="button">Go on</button>
      <button class="like" type="button">More like it</button>
      <div class="files"></div></div>`;
  $(".play", item).ariaLabel = `Play ${label(id)}`;
  $("img", item).src = `pictures/${id}.png`;
  $("img", item).alt = `Mel spectrogram of ${label(id)}`;
  if (graph) $(".algorithm", item).append(draw(graph));
  $(".files", item).append(...state.endings.map((ending) => download(id, ending)),
    make("a", { href: `sounds/${id}.wav`, textContent: ".wav",
      download: `${state.step.target.name}-${id}.wav`, title: "Download its sound" }));
  $(".on", item).onclick = () => goOn(id);
  $(".like", item).onclick = () => send("like", { candidate: id });
  item.addEventListener("click", () => choose(id));
  item.addEventListener("focusin", () => choose(id));
  listen(item, () => id);
  return item;
};

const compared = (value, bank) => {
  if (bank === null) return "";
  const share = Math.round(Math.abs(1 - value / bank) * 100);
  if (!share) return "as the bank's best";
  return `${share} % ${value < bank ? "closer" : "farther"} than the bank's best`;
};

const list = () => {
  const { candidates, target } = state.step;
  const most = 1.05 * Math.max(target.bank ?? 0, ...candidates.map((c) => c.a_mean));
  const items = candidates.map((candidate, i) => {
    const { id, a_mean } = candidate;
    if (!rows.has(id)) rows.set(id, build(candidate));
    const item = rows.get(id);
    $(".label", item).textContent = `${i + 1} · ${label(id)}`;
    $("strong", item).textContent = a_mean.toFixed(3);
    $("small", item).textContent = compared(a_mean, target.bank);
    $(".fill", item).style.setProperty("--value", a_mean / most);
    $(".tick", item).hidden = target.bank === null;
    $(".tick", item).style.setProperty("--value", (target.bank ?? 0) / most);
    $(".tick", item).title = "the bank's best";
    return item;
  });
  const current = [...$("#candidates").children];
  if (items.length !== current.length || items.some((item, i) => item !== current[i])) {
    // Only what moved is moved, so that focus and playing stay.
    const focused = document.activeElement;
    $("#candidates").replaceChildren(...items);
    if (focused?.isConnected) focused.focus({ preventScroll: true });
  }
  row(playing)?.classList.add("playing");
  if (!candidates.some((c) => c.id === chosen)) choose(candidates[0]?.id ?? null);
  mark();
};

const choose = (id) => {
  chosen = id;
  mark();
};

const mark = () => {
  for (const item of $("#candidates").children) {
    const is = item.dataset.id === chosen;
    item.toggleAttribute("aria-current", is);
    for (const node of item.querySelectorAll(".node")) {
      const parts = state.parts.filter((p) => p.split(" ")[0] === node.dataset.module);
      node.classList.toggle("kept", is && parts.every((p) => locked.has(p)));
    }
  }
  $("#keep").hidden = !chosen;
  $("#chosen").textContent = chosen ? label(chosen) : "";
  for (const button of $("#parts").querySelectorAll("button")) {
    button.ariaPressed = locked.has(button.value);
  }
  $("#none").disabled = !locked.size;
};

const goOn = (id) => send("go-on", {
  candidate: id, locked: state.parts.filter((p) => locked.has(p)), seconds: seconds(),
});

// Locks ----------------------------------------------------------------------

const lock = (parts) => {
  const all = parts.every((p) => locked.has(p));
  for (const part of parts) all ? locked.delete(part) : locked.add(part);
  mark();
};

const offer = () => {
  const button = (part, text) => make("button", {
    type: "button", value: part, textContent: text, title: `Keep: ${part}`,
    onclick: () => lock([part]),
  });
  const words = (part) => part.replace(/[_:]/g, " ");
  const groups = new Map();
  for (const part of state.parts) {
    const [module, kind] = part.split(" ");
    if (!kind) groups.set(part, [button(part, words(part))]);
    else {
      if (!groups.has(module)) groups.set(module, [make("span", { textContent: words(module) })]);
      groups.get(module).push(button(part, kind));
    }
  }
  const items = [...groups.values()].map((group) => make("div", {}, ...group));
  $("#parts").replaceChildren(...items);
};
$("#on").onclick = () => chosen && goOn(chosen);
$("#none").onclick = () => { locked.clear(); mark(); };

// The whole ------------------------------------------------------------------

const STATES = {
  waiting: () => "Waiting for the search before to end …",
  compiling: (s) => `Getting ready for sounds of ${s.target.length} s, once …`,
  searching: (s) => `Searching: ${s.renders.toLocaleString("en")} presets heard, ` +
    `${s.spent.toFixed(0)} s`,
  done: (s) => `${s.renders.toLocaleString("en")} presets heard in ${s.spent.toFixed(0)} s.`,
  stopped: (s) => `Stopped: ${s.renders.toLocaleString("en")} presets heard in ` +
    `${s.spent.toFixed(0)} s.`,
  failed: (s) => `That did not work: ${s.message}`,
};

const history = () => {
  const { steps, step } = state;
  const at = steps.findIndex((s) => s.number === step.number);
  $("#undo").disabled = at < 1;
  $("#redo").disabled = at > steps.length - 2;
  $("#history ol").replaceChildren(...steps.map(({ number, title }) => {
    const button = make("button", {
      type: "button", textContent: `${number} ${title}`, title,
      onclick: () => send("step", { number }),
    });
    if (number === step.number) button.setAttribute("aria-current", "step");
    return make("li", {}, button);
  }));
  $("#history [aria-current]")?.scrollIntoView({ block: "nearest", inline: "nearest" });
};
const walk = (by) => {
  const at = state.steps.findIndex((s) => s.number === state.step.number);
  const next = state.steps[at + by];
  if (next) send("step", { number: next.number });
};
$("#undo").onclick = () => walk(-1);
$("#redo").onclick = () => walk(1);
$("#stop").onclick = () => send("stop", {});

const pitch = (note) => `${NOTES[note % 12]}${Math.floor(note / 12) - 1}`;

const fields = () => {
  const { target, seconds: given, number, locked: kept } = state.step;
  const form = $("#played");
  quiet();
  for (const name of ["note", "hold", "level"]) form[name].value = target[name];
  form.seconds.value = given;
  $("img", $("#target")).src = `pictures/${target.id}.png`;
  $("#name").textContent = `target · ${target.name}`;
  $("#pitch").textContent = pitch(target.note);
  const [note, hold, level] = target.detected;
  $("#detected").textContent =
    `Heard: note ${note} (${pitch(note)}), held ${hold} s, peak ${level} dB.`;
  $("#remarks").replaceChildren(
    ...target.remarks.map((remark) => make("li", { textContent: remark })));
  $("#bank").replaceChildren("All of these: ", ...state.endings.filter(
    (ending) => ending !== ".vstpreset").flatMap((ending) => [make("a", {
      href: `presets/${number}${ending}`, textContent: `bank${ending}`,
      download: `${target.name}-bank${ending}`,
    }), " "]));
  locked = new Set(kept);
  $("#played button").classList.remove("changed");
};
$("#played").addEventListener("input", () => {
  $("#pitch").textContent = pitch(Number($("#played").note.value));
  $("#played button").classList.add("changed");
});
$("#played").addEventListener("submit", (event) => {
  event.preventDefault();
  send("again", Object.fromEntries(["note", "hold", "level", "seconds"].map(
    (name) => [name, Number(event.target[name].value)])));
});

const update = () => {
  const { step } = state;
  $("#about").textContent = `${state.engine} · ${state.bank} to start from`;
  if (!recorder) $("#duration") && ($("#duration").textContent = state.duration);
  document.body.classList.toggle("found", Boolean(step));
  $("main").hidden = !step;
  if (!step) return;
  if (!$("#parts").children.length) offer();
  const now = `${step.number} ${step.target.id}`;
  if (now !== shown) fields();
  shown = now;
  history();
  const going = !["done", "stopped", "failed"].includes(step.state);
  $("#status p").textContent = STATES[step.state](step);
  $("#status").className = step.state;
  $("#status progress").hidden = $("#stop").hidden = !going;
  if (step.state === "searching") {
    $("#status progress").value = Math.min(step.spent / step.seconds, 1);
  } else {
    $("#status progress").removeAttribute("value");
  }
  const { bank } = step.target;
  $("#yardsticks").textContent = "a_mean is the distance from the target, less is " +
    `closer. ${bank === null ? "" : `Best of the bank: ${bank.toFixed(3)}. `}` +
    (state.floor ? `One preset rendered twice: ${state.floor.toFixed(3)}.`
      : "One preset rendered twice: 0, this engine repeats exactly.");
  $("#yardsticks").hidden = !step.candidates.length;
  list();
};

const events = new EventSource("events");
events.onmessage = (event) => {
  state = JSON.parse(event.data);
  update();
};
events.onerror = () => tell("The program does not answer: is it still running?");
events.onopen = () => tell("");

// Keys and light -------------------------------------------------------------

const move = (by) => {
  const items = [...$("#candidates").children];
  const at = items.findIndex((item) => item.dataset.id === chosen);
  const next = items[Math.max(0, Math.min(at + by, items.length - 1))];
  if (!next) return;
  choose(next.dataset.id);
  next.focus();
  next.scrollIntoView({ block: "nearest" });
  if (playing && playing !== chosen) play(chosen);
};

const KEYS = {
  " ": () => chosen && toggle(chosen),
  ArrowDown: () => move(1),
  ArrowUp: () => move(-1),
  j: () => move(1),
  k: () => move(-1),
  t: () => state.step && toggle(state.step.target.id),
  Enter: () => chosen && goOn(chosen),
  m: () => chosen && send("like", { candidate: chosen }),
  d: () => $(".files a", row(chosen))?.click(),
  s: () => send("stop", {}),
  u: () => walk(-1),
  r: () => walk(1),
  Escape: quiet,
  "?": () => $("#help").showModal(),
};

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || $("#help").open) return;
  const at = event.target;
  if (at.matches("input, textarea") && event.key !== "Escape") return;
  // On a button or a link, these two do what they always do.
  if (at.matches("button, a, label") && [" ", "Enter"].includes(event.key)) return;
  const number = /^[1-9]$/.test(event.key) && $("#candidates").children[event.key - 1];
  const act = number
    ? () => { choose(number.dataset.id); toggle(chosen); } : KEYS[event.key];
  if (!act || (!state?.step && event.key !== "?")) return;
  event.preventDefault();
  act();
});
$("#keys").onclick = () => $("#help").showModal();

const LIGHTS = { "light dark": "◐ Auto", light: "☀ Light", dark: "☾ Dark" };
const light = (scheme) => {
  document.documentElement.style.colorScheme = scheme;
  $("#theme").textContent = LIGHTS[scheme];
  localStorage.setItem("scheme", scheme);
};
const known = localStorage.getItem("scheme");
light(known in LIGHTS ? known : "light dark");
$("#theme").onclick = () => {
  const names = Object.keys(LIGHTS);
  const at = names.indexOf(localStorage.getItem("scheme"));
  light(names[(at + 1) % names.length]);
};
