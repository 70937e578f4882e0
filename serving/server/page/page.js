// Microphone → AudioWorklet → /v1/stream → text; recordings → /v1/audio/transcriptions.

import { clock, languages, readCues, toVtt, write } from "./transcript.js";

const find = (id) => document.getElementById(id);
const base = new URL(".", location.href);
const WAITING = 1 << 20; // bytes not sent yet at which the network is called slow
const FULL = "The server takes no more streams at the moment; try again in a minute.";

let key = "";
let live = null;
let heardNames = new Set();

function say(id, text, wrong = false) {
  find(id).textContent = text;
  find(id).classList.toggle("error", wrong);
}

function listNames() {
  const lines = find("names").value.split(/[\n,，、]/);
  return [...new Set(lines.map((line) => line.trim()).filter(Boolean))];
}

function authorised(options = {}) {
  return key ? { ...options, headers: { Authorization: `Bearer ${key}` } } : options;
}

/** The server's own words for what went wrong. */
async function explain(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `the server answered ${response.status}.`;
  }
}

/** Programs are compiled when a server starts: streams have to wait for them. */
async function waitReady() {
  find("record").disabled = true;
  for (;;) {
    const { status } = await fetch(new URL("health/ready", base));
    if (status !== 503) break;
    say("status", "The server is getting ready…");
    await new Promise((done) => setTimeout(done, 2000));
  }
  find("record").disabled = false;
}

async function connect() {
  try {
    await waitReady();
    const response = await fetch(new URL("v1/models", base), authorised());
    find("login").hidden = response.status !== 401;
    if (response.status === 401) {
      if (key) say("status", "The server does not know this key.", true);
      find("key").focus();
      return;
    }
    if (!response.ok) throw new Error(await explain(response));
    const { data } = await response.json();
    find("model").textContent = data.map(({ id }) => id).join(", ");
    say("status", "");
  } catch (error) {
    say("status", `No connection: ${error.message}`, true);
  }
}

class Live {
  constructor(socket, context, media) {
    Object.assign(this, { socket, context, media, sent: 0, began: 0, over: false });
  }

  static async open() {
    const media = await navigator.mediaDevices.getUserMedia({
      audio: { channelCount: 1, echoCancellation: true, noiseSuppression: false },
    });
    const context = new AudioContext();
    await context.audioWorklet.addModule(new URL("page/recorder.js", base));
    const address = new URL(`v1/stream?rate=${context.sampleRate}`, base);
    address.protocol = address.protocol.replace("http", "ws");
    const socket = new WebSocket(address, key ? ["nim4", `nim4-key.${key}`] : ["nim4"]);
    const made = new Live(socket, context, media);
    socket.onmessage = ({ data }) => made.take(JSON.parse(data));
    socket.onclose = (event) => made.close(event);
    return made;
  }

  /** Audio begins when the server is ready, so that none is lost before. */
  start() {
    this.name();
    const recorder = new AudioWorkletNode(this.context, "recorder", { numberOfOutputs: 0 });
    recorder.port.onmessage = ({ data }) => this.feed(data);
    this.context.createMediaStreamSource(this.media).connect(recorder);
    say("status", "Listening.");
  }

  feed({ packet, peak }) {
    find("level").value = peak;
    if (this.over || this.socket.readyState !== WebSocket.OPEN) return;
    const seconds = packet.length / this.context.sampleRate;
    if (!this.sent) this.began = performance.now() - 1000 * seconds;
    this.sent += seconds;
    this.socket.send(packet);
    find("heard").textContent = clock(this.sent);
    if (this.socket.bufferedAmount > WAITING) say("status", "The network is slow.", true);
  }

  name() {
    if (this.socket.readyState !== WebSocket.OPEN || this.over) return;
    this.socket.send(JSON.stringify({ type: "update", hints: listNames() }));
  }

  take(message) {
    const { event, text, stable, heard } = message;
    if (event === "ready") this.start();
    if (event === "error") say("status", message.error.message, true);
    if (event === "partial") showPartial(text, stable);
    if (event === "final") showFinal(message);
    if (text && heard && !this.over) {
      const delay = (performance.now() - this.began) / 1000 - heard;
      find("delay").textContent = `${Math.max(0, delay).toFixed(2)} s`;
    }
  }

  /** No more audio; finals that are open still come. */
  end() {
    this.over = true;
    this.media.getTracks().forEach((track) => track.stop());
    if (this.context.state !== "closed") this.context.close();
    find("level").value = 0;
    if (this.socket.readyState === WebSocket.OPEN) {
      this.socket.send(JSON.stringify({ type: "end" }));
      say("status", "The last words are being written…");
    }
  }

  close({ code, reason }) {
    if (!this.over) this.end();
    showPartial("", 0);
    if (code === 1000) say("status", "");
    else if (!find("status").classList.contains("error"))
      // A browser does not tell why a WebSocket was refused.
      say("status", reason || (this.sent ? `The connection ended (${code}).` : FULL), true);
    live = null;
    showRecording(false);
  }
}

function showRecording(on) {
  find("record").setAttribute("aria-pressed", String(on));
  find("record").textContent = on ? "Stop listening" : "Start listening";
}

function showPartial(text, stable) {
  find("stable").textContent = text.slice(0, stable);
  find("provisional").textContent = text.slice(stable);
  if (text) find("language").textContent = languages(text) || "–";
}

function showFinal({ text, start, hotwords }) {
  showPartial("", 0);
  if (!text) return;
  const paragraph = document.createElement("p");
  const time = document.createElement("time");
  time.textContent = clock(start);
  paragraph.append(time);
  write(paragraph, text, [...hotwords, ...listNames()]);
  find("transcript").append(paragraph);
  paragraph.scrollIntoView({ block: "nearest" });
  find("language").textContent = languages(text) || "–";
  for (const mark of paragraph.querySelectorAll("mark")) heardNames.add(mark.textContent);
  if (heardNames.size) find("found").textContent = [...heardNames].join(", ");
}

async function toggle() {
  if (live) {
    live.end();
    return;
  }
  find("record").disabled = true;
  say("status", "The microphone is being opened…");
  try {
    live = await Live.open();
    showRecording(true);
  } catch (error) {
    const refused = error.name === "NotAllowedError";
    const why = navigator.mediaDevices
      ? refused ? "the browser was not allowed to use it." : error.message
      : "browsers give it to https:// and localhost only.";
    say("status", `No microphone: ${why}`, true);
  }
  find("record").disabled = false;
}

function offer(id, text, type) {
  URL.revokeObjectURL(find(id).href);
  find(id).href = URL.createObjectURL(new Blob([text], { type }));
}

async function transcribe(file) {
  const form = new FormData();
  form.append("file", file);
  form.append("model", find("model").textContent);
  form.append("response_format", "srt");
  for (const name of listNames()) form.append("keywords[]", name);
  find("passages").replaceChildren();
  find("downloads").hidden = true;
  find("progress").hidden = false;
  say("file-status", `${file.name} is being transcribed…`);
  try {
    const address = new URL("v1/audio/transcriptions", base);
    const response = await fetch(address, authorised({ method: "POST", body: form }));
    if (!response.ok) throw new Error(await explain(response));
    showSubtitles(await response.text());
  } catch (error) {
    say("file-status", `${file.name}: ${error.message}`, true);
  }
  find("progress").hidden = true;
}

function showSubtitles(srt) {
  const cues = readCues(srt);
  for (const { start, lines } of cues) {
    const item = document.createElement("li");
    const time = document.createElement("time");
    time.textContent = start.replace(/,.*/, "");
    item.append(time);
    find("passages").append(write(item, lines.join(" "), listNames()));
  }
  say("file-status", cues.length ? "Done." : "Nothing was said in it.");
  find("downloads").hidden = !cues.length;
  offer("srt", srt, "application/x-subrip");
  offer("vtt", toVtt(cues), "text/vtt");
  offer("txt", cues.map(({ lines }) => lines.join("\n") + "\n").join(""), "text/plain");
}

find("record").addEventListener("click", toggle);
find("names").addEventListener("change", () => live?.name());
find("file").addEventListener("change", ({ target }) => target.files[0] && transcribe(target.files[0]));
find("clear").addEventListener("click", () => {
  find("transcript").replaceChildren();
  heardNames = new Set();
  find("found").textContent = "none yet";
});
find("copy").addEventListener("click", async () => {
  const lines = [...find("transcript").children].map((paragraph) => paragraph.innerText);
  await navigator.clipboard.writeText(lines.join("\n"));
  say("status", "Copied.");
});
find("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  key = find("key").value.trim();
  connect();
});
for (const kind of ["dragover", "dragleave", "drop"])
  find("drop").addEventListener(kind, (event) => {
    event.preventDefault();
    find("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop" && event.dataTransfer.files[0]) transcribe(event.dataTransfer.files[0]);
  });

connect();
