// Keeps the status page current: asks for /status.json every few seconds and writes what changed into the document.
// Texts go in by textContent only, so nothing a peer or a configuration says can become markup.
"use strict";

(() => {
  const SCHEMA = 1;
  const PATIENCE_MS = 10000;
  const LONGEST_WAIT_MS = 30000;
  const MISSING = "-";
  const PLOT = { width: 240, height: 48 };

  // ---- numbers as people read them: the same words as rustosd/status/words.py ----

  // Like Python's format, which rounds exact ties to even; toFixed rounds them up.
  function fixed(value, digits) {
    const grid = value * 2 ** (digits + 1);
    if (!Number.isInteger(grid) || grid % 2 === 0) return value.toFixed(digits);
    const below = Math.floor(value * 10 ** digits);
    return ((below % 2 ? below + 1 : below) / 10 ** digits).toFixed(digits);
  }

  const commas = (value, digits = 0) => fixed(value, digits).replace(/\B(?=(\d{3})+(?!\d))/g, ",");

  function scaled(value, step, first, units) {
    let amount = value;
    let unit = first;
    for (const larger of units) {
      if (amount < step) break;
      amount /= step;
      unit = larger;
    }
    return unit === first ? `${fixed(value, 0)} ${first}` : `${fixed(amount, 1)} ${unit}`;
  }

  function duration(seconds) {
    const whole = Math.trunc(seconds);
    const parts = [
      [Math.trunc(whole / 86400), "d"],
      [Math.trunc(whole / 3600) % 24, "h"],
      [Math.trunc(whole / 60) % 60, "m"],
      [whole % 60, "s"],
    ];
    while (parts.length > 1 && parts[0][0] === 0) parts.shift();
    return parts.slice(0, 2).map(([count, unit]) => `${count}${unit}`).join(" ");
  }

  const octets = (value) => scaled(value, 1024, "B", ["KiB", "MiB", "GiB", "TiB", "PiB"]);

  const formats = {
    text: (value) => (value === null || value === "" ? MISSING : String(value)),
    count: (value) => (value === null ? MISSING : commas(value)),
    octets: (value) => (value === null ? MISSING : octets(value)),
    bits: (value) => scaled(value, 1000, "bit/s", ["kbit/s", "Mbit/s", "Gbit/s", "Tbit/s"]),
    rate: (value) => `${commas(value, value > 0 && value < 10 ? 1 : 0)}/s`,
    frames: (value) => formats.rate(value).replace("/s", " frames/s"),
    duration,
    ms: (value) => (value === null ? MISSING : `${fixed(value / 1000, 3)} ms`),
    list: (value) => value.join(", ") || MISSING,
    limit: (value) => (value ? `of ${octets(value)}` : "limit unknown"),
  };

  function plot(values, points) {
    const shown = values.slice(-points);
    if (shown.length < 2) return { line: "", area: "" };
    const top = Math.max(1, ...shown);
    const step = PLOT.width / (points - 1);
    const first = points - shown.length;
    const spots = shown.map((value, i) =>
      `${((first + i) * step).toFixed(0)} ${(PLOT.height - 1 - (value / top) * (PLOT.height - 2)).toFixed(1)}`);
    const line = `M${spots.join(" L")}`;
    return { line, area: `${line} V${PLOT.height} H${(first * step).toFixed(0)} Z` };
  }

  function summary(notes) {
    const words = ["error", "warning", "note"].flatMap((severity) => {
      const count = notes.filter((note) => note.severity === severity).length;
      return count ? [`${count} ${severity}${count === 1 ? "" : "s"}`] : [];
    });
    return words.join(", ") || "All is well";
  }

  // ---- the document ----

  const find = (selector, root = document) => root.querySelector(selector);
  const findAll = (selector, root = document) => Array.from(root.querySelectorAll(selector));
  const at = (status, path) => path.split(".").reduce((value, key) => value[key], status);

  function say(element, text) {
    if (element.textContent !== text) element.textContent = text;
  }

  function make(tag, properties = {}, ...children) {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  }

  function paintValues(status) {
    for (const element of findAll("[data-value]")) {
      say(element, formats[element.dataset.format](at(status, element.dataset.value)));
    }
    for (const element of findAll("[data-meter]")) {
      const limit = at(status, element.dataset.limit);
      element.value = limit ? Math.min(1, at(status, element.dataset.meter) / limit) : 0;
    }
    say(find("#states"), Object.entries(status.connections.states)
      .map(([state, count]) => `${commas(count)} ${state}`).join(", ") || MISSING);
  }

  function paintHealth(notes) {
    const words = summary(notes);
    say(find("#summary"), words);
    find("#summary").className = `summary ${notes.length ? notes[0].severity : "well"}`;
    document.title = `rustosd: ${words}`;
    const list = find("#notes");
    const wanted = notes.map((note) => JSON.stringify(note));
    if (list.dataset.shown === wanted.join()) return;
    list.dataset.shown = wanted.join();
    list.replaceChildren(...notes.map((note) => make("li", { className: `note ${note.severity}` },
      make("strong", { textContent: note.severity[0].toUpperCase() + note.severity.slice(1) }),
      make("p", { textContent: note.text }),
      make("p", { className: "quiet", textContent: note.advice }),
      make("code", { textContent: note.code }))));
  }

  function paintCell(cell, column, row) {
    const text = formats[column.format](row[column.field]);
    if (cell.textContent === text) return;
    if (column.field === "command") cell.replaceChildren(make("code", { textContent: text }));
    else if (column.field === "name" && row.link && row.link.startsWith("/")) {
      cell.replaceChildren(make("a", { href: row.link, textContent: text }));
    } else cell.textContent = text;
  }

  function paintRows(body, rows) {
    const table = body.closest("table");
    const heads = findAll("th", table);
    const columns = heads.map((head) => ({ ...head.dataset, title: head.textContent, kind: head.className }));
    while (body.rows.length > rows.length) body.deleteRow(-1);
    while (body.rows.length < rows.length) {
      const line = body.insertRow();
      line.setAttribute("role", "row");
      for (const column of columns) {
        const cell = line.insertCell();
        cell.className = column.kind;
        cell.setAttribute("role", "cell");
        cell.dataset.label = column.title;
      }
    }
    rows.forEach((row, i) => columns.forEach((column, j) => paintCell(body.rows[i].cells[j], column, row)));
    table.hidden = rows.length === 0;
    table.nextElementSibling.hidden = rows.length > 0;
  }

  function cardOf(name) {
    const cards = find("#cards");
    const known = findAll("[data-nic]", cards).find((card) => card.dataset.nic === name);
    if (known) return known;
    const card = find("#card").content.firstElementChild.cloneNode(true);
    card.dataset.nic = name;
    card.setAttribute("aria-label", `Interface ${name}`);
    cards.append(card);
    return card;
  }

  function paintInterfaces(interfaces) {
    const shown = interfaces.filter((nic) => nic.kind !== "loopback" || nic.rx_frames > 0);
    const cards = find("#cards");
    const names = new Set(shown.map((nic) => nic.name));
    for (const card of findAll("[data-nic]", cards)) if (!names.has(card.dataset.nic)) card.remove();
    for (const nic of shown) {
      const card = cardOf(nic.name);
      for (const element of findAll("[data-field]", card)) {
        say(element, formats[element.dataset.format || "text"](nic[element.dataset.field]));
      }
      find(".badge", card).className = `badge ${nic.link === "up" ? "up" : "down"}`;
      for (const way of ["rx", "tx"]) {
        const values = nic[`${way}_history`];
        const peak = formats.bits(Math.max(0, ...values));
        const picture = find(`[data-plot=${way}_history]`, card);
        const { line, area } = plot(values, Number(cards.dataset.points));
        find(".line", picture).setAttribute("d", line);
        find(".area", picture).setAttribute("d", area);
        say(find(`[data-peak=${way}_history]`, card), peak);
        picture.setAttribute("aria-label", `${way === "rx" ? "Receiving" : "Sending"}: ` +
          `${formats.bits(nic[`${way}_bits_per_s`])} now, at most ${peak} in the last two minutes`);
      }
    }
  }

  function paint(status) {
    paintValues(status);
    paintHealth(status.health);
    paintInterfaces(status.interfaces);
    for (const body of findAll("[data-rows]")) paintRows(body, at(status, body.dataset.rows));
  }

  // ---- asking again and again ----

  let timer = 0;
  let failures = 0;
  let paused = false;

  function live(state, text) {
    const element = find("#live");
    element.className = state;
    say(element, text);
  }

  async function ask() {
    const response = await fetch("/status.json", { cache: "no-store", signal: AbortSignal.timeout(PATIENCE_MS) });
    if (!response.ok) throw new Error(`status ${response.status}`);
    const status = await response.json();
    if (status.schema !== SCHEMA) throw new Error("another schema: reload the page");
    return status;
  }

  async function turn() {
    window.clearTimeout(timer);
    if (paused || document.hidden) return;
    let wait = 2000;
    try {
      const status = await ask();
      if (paused) return;
      paint(status);
      wait = 1000 * status.interval_s;
      failures = 0;
      live("on", "Live");
    } catch {
      failures += 1;
      wait = Math.min(LONGEST_WAIT_MS, 1000 * 2 ** failures);
      live("lost", "No answer: what you see is old");
    }
    window.clearTimeout(timer);
    timer = window.setTimeout(turn, wait);
  }

  function start() {
    const button = find("#pause");
    button.hidden = false;
    button.addEventListener("click", () => {
      paused = !paused;
      button.setAttribute("aria-pressed", String(paused));
      if (paused) live("paused", "Paused");
      else turn();
    });
    document.addEventListener("visibilitychange", turn);
    turn();
  }

  window.rustosd = { formats, plot, summary, paint };   // for the tests
  start();
})();
