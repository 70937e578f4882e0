// Text on the page and in files; nothing here listens or sends.

/** Seconds as 0:07, 12:30 or 1:02:03. */
export function clock(seconds) {
  const whole = Math.floor(seconds);
  const parts = [Math.floor(whole / 60) % 60, whole % 60];
  if (whole >= 3600) parts.unshift(Math.floor(whole / 3600));
  return parts.map((part, i) => (i ? String(part).padStart(2, "0") : part)).join(":");
}

/** Cues {start, end, lines} of an .srt file; start and end as they stand there. */
export function readCues(srt) {
  const blocks = srt.trim().split(/\n\n+/).filter(Boolean);
  return blocks.map((block) => {
    const [, span, ...lines] = block.split("\n");
    const [start, end] = span.split(" --> ");
    return { start, end, lines };
  });
}

/** The cues as a .vtt file. */
export function toVtt(cues) {
  const escaped = { "&": "&amp;", "<": "&lt;", ">": "&gt;" };
  const blocks = cues.map(({ start, end, lines }) => {
    const text = lines.join("\n").replace(/[&<>]/g, (sign) => escaped[sign]);
    return `${start} --> ${end}`.replaceAll(",", ".") + `\n${text}\n`;
  });
  return ["WEBVTT\n", ...blocks].join("\n");
}

/** What a text is written in: "en", "zh", "en, zh" or "". */
export function languages(text) {
  const found = [];
  if (/[A-Za-z]/.test(text)) found.push("en");
  if (/\p{Script=Han}/u.test(text)) found.push("zh");
  return found.join(", ");
}

/** The text in pieces: [piece, whether it is one of the names]. */
export function split(text, names) {
  const wanted = names.filter(Boolean).sort((a, b) => b.length - a.length);
  if (!wanted.length) return [[text, false]];
  const escaped = wanted.map((name) => name.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"));
  const pieces = text.split(new RegExp(`(${escaped.join("|")})`, "iu"));
  return pieces.map((piece, i) => [piece, i % 2 === 1]).filter(([piece]) => piece);
}

/** An element with the text, and names in it marked. */
export function write(element, text, names) {
  for (const [piece, named] of split(text, names)) {
    if (!named) {
      element.append(piece);
      continue;
    }
    const mark = document.createElement("mark");
    mark.textContent = piece;
    element.append(mark);
  }
  return element;
}
