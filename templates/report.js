// Of `doit report`: sorting, filtering, opened rows and copying. Without it the page can be read all the same.
// Texts are only ever set as textContent: nothing here makes HTML of a value.
"use strict";

(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const table = document.getElementById("table");
  const SVG = "http://www.w3.org/2000/svg";

  function element(name, properties = {}, ...children) {
    const made = Object.assign(document.createElement(name), properties);
    made.append(...children);
    return made;
  }

  function drawn(name, attributes = {}, text = "") {
    const made = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text) made.textContent = text;
    return made;
  }

  // Copying

  function copyButton(words, name, text) {
    const button = element("button", { type: "button", className: "copy", textContent: words });
    button.setAttribute("aria-label", `${words} of ${name}`);
    button.title = text.length < 300 ? text : "";
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(text);
        button.textContent = "Copied";
        setTimeout(() => (button.textContent = words), 1500);
      } catch {
        // The browser keeps its clipboard from the page, as over http: Ctrl+C takes what is selected.
        const shown = element("code", { textContent: text });
        button.replaceWith(shown);
        getSelection().selectAllChildren(shown);
      }
    });
    return button;
  }

  // Values for people

  function duration(seconds) {
    if (seconds < 10) return `${seconds.toFixed(1)} s`;
    const whole = Math.round(seconds);
    if (whole < 60) return `${whole} s`;
    if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
    return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
  }

  function size(bytes) {
    let unit = 0;
    while (bytes >= 1000 && unit < 3) [bytes, unit] = [bytes / 1000, unit + 1];
    return `${bytes.toFixed(unit < 2 || bytes >= 100 ? 0 : 1)} ${["B", "kB", "MB", "GB"][unit]}`;
  }

  // The time that the clock showed where the page was made.
  const day = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short", timeZone: "UTC" });
  const minute = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", timeZone: "UTC" });

  // Charts

  const TIME_UNITS = [[3600, "h"], [60, "min"], [1, "s"]];
  const SIZE_UNITS = [[1e9, "GB"], [1e6, "MB"], [1e3, "kB"], [1, "B"]];

  function axis(highest, units) {
    const [unit, name] = units.find(([each]) => highest >= each) ?? units.at(-1);
    const most = highest / unit || 1;
    const power = 10 ** Math.floor(Math.log10(most / 3));
    const step = [1, 2, 5, 10].map((each) => each * power).find((each) => most / each <= 4) ?? most;
    const ticks = [];
    for (let value = 0; value < most + step; value += step) ticks.push(Number(value.toPrecision(6)));
    return { unit, name, ticks };
  }

  // `lines`: { look, points: [[time, value], …] }. `failed`: times of runs that failed.
  function chart(label, lines, failed, units, words) {
    const [width, height, left, right, top, bottom] = [430, 170, 34, 92, 22, 22];
    const all = lines.flatMap((line) => line.points);
    const times = [...all.map(([time]) => time), ...failed];
    const [first, last] = [Math.min(...times), Math.max(...times)];
    const { unit, name, ticks } = axis(Math.max(...all.map(([, value]) => value), 0), units);
    const x = (time) => left + (last > first ? (time - first) / (last - first) : 1) * (width - left - right);
    const y = (value) => height - bottom - (value / unit / ticks.at(-1)) * (height - top - bottom);
    const picture = drawn("svg", { class: "chart", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
    picture.append(drawn("text", { x: 0, y: 10 }, name));
    for (const tick of ticks) {
      const at = y(tick * unit);
      picture.append(
        drawn("line", { x1: left, x2: width - right, y1: at, y2: at }),
        drawn("text", { x: left - 6, y: at + 4, "text-anchor": "end" }, String(tick)),
      );
    }
    const sameDay = last - first < 86400;
    const date = (time) => (sameDay ? minute : day).format(time * 1000);
    if (last > first) picture.append(drawn("text", { x: left, y: height - 4 }, date(first)));
    picture.append(drawn("text", { x: width - right, y: height - 4, "text-anchor": "end" }, date(last)));
    const labels = [];
    for (const { look, title, points } of lines) {
      if (!points.length) continue;
      const drawnPoints = points.map(([time, value]) => `${x(time).toFixed(1)},${y(value).toFixed(1)}`);
      picture.append(drawn("polyline", { class: look, points: drawnPoints.join(" ") }));
      for (const [time, value] of points) {
        const dot = drawn("circle", { class: look, cx: x(time), cy: y(value), r: 2.6 });
        dot.append(drawn("title", {}, `${day.format(time * 1000)} ${minute.format(time * 1000)}: ${words(value)}`));
        picture.append(dot);
      }
      labels.push({ title, value: words(points.at(-1)[1]), at: y(points.at(-1)[1]) });
    }
    // Each needs two lines of text.
    labels.sort((a, b) => a.at - b.at);
    let free = 12;
    for (const { title, value, at } of labels) {
      const here = Math.min(Math.max(at, free), height - 18);
      picture.append(
        drawn("text", { class: "value", x: width - right + 10, y: here }, value),
        drawn("text", { x: width - right + 10, y: here + 13 }, title),
      );
      free = here + 28;
    }
    for (const time of failed) {
      const [cx, cy] = [x(time), height - bottom];
      const cross = drawn("path", { class: "cross", d: `M${cx - 4} ${cy - 4}l8 8m0 -8l-8 8` });
      cross.append(drawn("title", {}, `${day.format(time * 1000)} ${minute.format(time * 1000)}: failed`));
      picture.append(cross);
    }
    return picture;
  }

  // Of a value, what a line has to move to be seen to move.
  const LEAST_SPAN = 0.1;

  // A small line through values, each as far from the next; null for fewer than two.
  function spark(values) {
    if (values.length < 2) return null;
    const [width, height] = [64, 16];
    const [low, high] = [Math.min(...values), Math.max(...values)];
    const span = Math.max(high - low, LEAST_SPAN * high) || 1;
    const points = values.map((value, number) => {
      const y = height / 2 - ((value - (low + high) / 2) / span) * (height - 4);
      return `${Math.round(2 + (number * (width - 4)) / (values.length - 1))},${y.toFixed(1)}`;
    });
    const picture = drawn("svg", { class: "spark", width, height, "aria-hidden": "true" });
    picture.append(drawn("polyline", { points: points.join(" ") }));
    return picture;
  }

  // Rows of [time, seconds of podman, seconds of enroot, bytes, whether it failed], from columns.
  function runsOf(image) {
    if (!image.runs) return [];
    const [minutes, build, squash, sizes, unit, failed] = image.runs;
    let time = 0;
    return minutes.map((more, at) => {
      time += more * 60;
      return [time, build[at], squash[at], sizes[at] === null ? null : sizes[at] * unit, failed.includes(at)];
    });
  }

  function sparks(row, image) {
    const runs = runsOf(image).filter((run) => run[1] !== null || run[2] !== null);
    const small = { size: runs.map((run) => run[3]).filter((bytes) => bytes !== null), took: runs.map((run) => run[1] + run[2]) };
    for (const [name, values] of Object.entries(small)) {
      const cell = row.querySelector(`td.${name}`);
      const line = cell.textContent && spark(values);
      if (line) cell.append(line);
    }
  }

  function part(title, ...children) {
    return element("div", {}, element("h3", {}, ...title), ...children);
  }

  function longText(label, text) {
    const shown = element("pre", { textContent: text, tabIndex: 0 });
    shown.setAttribute("role", "region");
    shown.setAttribute("aria-label", label);
    return shown;
  }

  // What has one name stands below it once.
  function factList(facts) {
    const list = element("dl");
    let before = "";
    for (const [name, text] of facts) {
      if (name !== before) list.append(element("dt", { textContent: name }));
      list.append(element("dd", { textContent: text }));
      before = name;
    }
    return list;
  }

  function details(name, image) {
    const runs = runsOf(image);
    const failed = runs.filter((run) => run[4]).map((run) => run[0]);
    const points = (column) => runs.filter((run) => run[column] !== null).map((run) => [run[0], run[column]]);
    const [build, squash, sizes] = [points(1), points(2), points(3)];
    const last = (found, words) => (found.length ? `, last ${words(found.at(-1)[1])}` : "");
    const texts = (numbers = []) => numbers.map((line) => data.lines[line]);
    const text = texts(image.edf).join("\n");
    const parts = [];
    if (build.length || squash.length) {
      const label = `Durations of ${runs.length} runs: build${last(build, duration)}; squash${last(squash, duration)}; ${failed.length} failed`;
      const lines = [
        { look: "a", title: "build", points: build },
        { look: "b", title: "squash", points: squash },
      ];
      parts.push(part(["Durations"], chart(label, lines, failed, TIME_UNITS, duration)));
    } else {
      const words = failed.length ? `Each of the ${failed.length} runs in the history failed.` : "No build is in the history.";
      parts.push(part(["Durations"], element("p", { textContent: words })));
    }
    if (sizes.length) {
      const label = `Size of the image after ${sizes.length} runs${last(sizes, size)}`;
      const lines = [{ look: "a", title: "image.sqsh", points: sizes }];
      parts.push(part(["Size"], chart(label, lines, [], SIZE_UNITS, size)));
    } else {
      parts.push(part(["Size"], element("p", { textContent: "No published image is in the history." })));
    }
    if (text) {
      const start = copyButton("Copy srun line", name, `srun --environment=${data.root}/${image.edf_path} `);
      parts.push(part(["EDF", copyButton("Copy EDF", name, text), start], longText(`EDF of ${name}`, text)));
    } else {
      parts.push(part(["EDF"], element("p", { textContent: "There is no env.toml yet: the first build writes it." })));
    }
    parts.at(-1).className = "edf";
    const facts = (image.facts ?? []).map(texts);
    if (facts.length) parts.push(part(["Inside"], factList(facts)));
    const [between, ...changes] = texts(image.changed);
    if (between) {
      const title = facts.some(([each]) => each === "Rolled back") ? "Changed by the rollback" : "Changed by the last rebuild";
      const builds = element("span", { textContent: between });
      parts.push(part([title, builds], longText(`${title} of ${name}`, changes.join("\n"))));
      parts.at(-1).className = "changed";
    }
    return element("div", { className: "details" }, ...parts);
  }

  // The table

  if (table) {
    const body = table.tBodies[0];
    const heads = [...table.tHead.rows[0].cells];
    const rows = [...body.rows].map((row, number) => ({ row, number, more: null, cells: [...row.cells] }));
    const byId = new Map(rows.map((each) => [each.row.id, each]));
    const collator = new Intl.Collator("en", { numeric: true });
    const filter = document.getElementById("filter");
    const tiles = [...document.querySelectorAll(".tile")];
    const chosen = new Set();
    document.querySelector(".tools").hidden = false;

    // Laid out as cards, cells lose their meaning for screen readers unless it is said.
    table.setAttribute("role", "table");
    for (const group of [table.tHead, body]) group.setAttribute("role", "rowgroup");
    for (const row of table.rows) row.setAttribute("role", "row");
    for (const head of heads) head.setAttribute("role", "columnheader");

    function toggle(each, open) {
      const button = each.cells[0].firstElementChild;
      if (open && !each.more) {
        const cell = element("td", { colSpan: heads.length });
        cell.setAttribute("role", "cell");
        cell.append(details(button.textContent, data.images[each.number]));
        each.more = element("tr", { className: "more", id: `more-${each.number}` }, cell);
        each.more.setAttribute("role", "row");
        button.setAttribute("aria-controls", each.more.id);
      }
      if (each.more) {
        each.row.after(each.more);
        each.more.hidden = !open;
      }
      button.setAttribute("aria-expanded", String(open));
    }

    for (const each of rows) {
      const [head, ...cells] = each.cells;
      head.setAttribute("role", "rowheader");
      for (const cell of cells) cell.setAttribute("role", "cell");
      each.text = each.row.textContent.toLowerCase();
      each.state = each.cells[1].textContent;
      const button = element("button", { type: "button", className: "open" }, element("span", {}, ...head.childNodes));
      button.setAttribute("aria-expanded", "false");
      button.addEventListener("click", () => toggle(each, button.getAttribute("aria-expanded") === "false"));
      head.replaceChildren(button);
      sparks(each.row, data.images[each.number]);
      const edf = each.row.querySelector("td.edf");
      if (edf.firstElementChild) {
        edf.replaceChildren(copyButton("Copy path", button.textContent, `${data.root}/${edf.textContent}`));
      }
    }

    // Of a cell without a value nothing is known: it stands at the end, whichever way.
    function sort(column, ascending) {
      const value = ({ cells: { [column]: cell } }) => cell.dataset.value ?? cell.textContent.trim();
      const keyed = rows.map((each) => [value(each), each]);
      keyed.sort(([a, one], [b, other]) => {
        if (!a || !b) return a ? -1 : b ? 1 : one.number - other.number;
        return (ascending ? 1 : -1) * collator.compare(a, b) || one.number - other.number;
      });
      body.append(...keyed.flatMap(([, { row, more }]) => (more ? [row, more] : [row])));
    }

    heads.forEach((head, column) => {
      if (!("sort" in head.dataset)) return;
      const button = element("button", { type: "button", textContent: head.textContent });
      button.addEventListener("click", () => {
        const ascending = head.getAttribute("aria-sort") !== "ascending";
        for (const other of heads) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
        sort(column, ascending);
      });
      head.replaceChildren(button);
    });

    function show() {
      const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
      let count = 0;
      for (const each of rows) {
        const fits = (!chosen.size || chosen.has(each.state)) && words.every((word) => each.text.includes(word));
        each.row.hidden = !fits;
        if (each.more) each.more.hidden = !fits || each.cells[0].firstElementChild.getAttribute("aria-expanded") === "false";
        count += fits;
      }
      document.getElementById("found").textContent = count === rows.length ? `${count} shown` : `${count} of ${rows.length} shown`;
      document.getElementById("nothing").hidden = count > 0;
      for (const tile of tiles) {
        const state = tile.dataset.state;
        tile.setAttribute("aria-pressed", String(state ? chosen.has(state) : !chosen.size));
      }
    }

    function reset() {
      chosen.clear();
      filter.value = "";
      show();
    }

    filter.addEventListener("input", show);
    document.getElementById("reset").addEventListener("click", () => {
      reset();
      filter.focus();
    });
    for (const tile of tiles) {
      tile.addEventListener("click", () => {
        const state = tile.dataset.state;
        if (!state) chosen.clear();
        else if (!chosen.delete(state)) chosen.add(state);
        show();
      });
    }

    // A link to a row that is filtered out has to lead there all the same.
    function reveal() {
      let each;
      try {
        each = byId.get(decodeURIComponent(location.hash.slice(1)));
      } catch {
        // Somebody has cut the address in the middle of a letter.
      }
      if (!each) return;
      if (each.row.hidden) reset();
      each.row.scrollIntoView({ block: "center" });
      each.cells[0].firstElementChild.focus({ preventScroll: true });
    }
    window.addEventListener("hashchange", reveal);
    // The same link twice is no change.
    document.addEventListener("click", (event) => {
      const link = event.target.closest?.("a[href]");
      if (link && (link.getAttribute("href") === location.hash)) reveal();
    });
    show();
    reveal();
  }

  // Of a log's last lines the very last say most.

  for (const failure of document.querySelectorAll(".failure")) {
    const end = () => {
      const log = failure.querySelector("pre");
      if (log) log.scrollTop = log.scrollHeight;
    };
    failure.addEventListener("toggle", end);
    if (failure.open) end();
  }

  // The graph can be pushed about in its box, and made larger and smaller.

  const canvas = document.querySelector(".canvas");
  if (canvas) {
    const graph = canvas.querySelector("svg");
    const [width, height] = [graph.width.baseVal.value, graph.height.baseVal.value];
    let scale = 1;

    function zoom(wanted) {
      const middle = (canvas.scrollTop + canvas.clientHeight / 2) / scale;
      scale = Math.min(Math.max(wanted, 0.1), 3);
      graph.setAttribute("width", width * scale);
      graph.setAttribute("height", height * scale);
      canvas.scrollTop = middle * scale - canvas.clientHeight / 2;
    }

    function zoomButton(words, name, wanted) {
      const button = element("button", { type: "button", textContent: words });
      button.setAttribute("aria-label", name);
      button.addEventListener("click", () => zoom(wanted()));
      return button;
    }

    const whole = () => Math.min(canvas.clientWidth / width, canvas.clientHeight / height, 1);
    const buttons = element("div", { className: "zoom" });
    buttons.append(
      zoomButton("−", "Smaller", () => scale / 1.4),
      zoomButton("+", "Larger", () => scale * 1.4),
      zoomButton("Whole graph", "Whole graph", whole),
      zoomButton("1:1", "Usual size", () => 1),
    );
    canvas.before(buttons);

    // Of a large graph the top left corner is empty: the bases, on the left, stand further down.
    new IntersectionObserver((entries, observer) => {
      if (!entries.some((entry) => entry.isIntersecting)) return;
      observer.disconnect();
      const boxes = [...graph.querySelectorAll("g > rect")].map((rect) => [rect.x.baseVal.value, rect.y.baseVal.value]);
      const left = Math.min(...boxes.map(([x]) => x));
      const heights = boxes.filter(([x]) => x === left).map(([, y]) => y).sort((a, b) => a - b);
      const middle = heights[Math.floor(heights.length / 2)];
      if (height > canvas.clientHeight) canvas.scrollTop = middle - canvas.clientHeight / 2;
    }).observe(canvas);

    let from = null;
    canvas.addEventListener("pointerdown", (event) => {
      if (event.pointerType !== "mouse" || event.button || event.target.closest("a")) return;
      from = [event.clientX + canvas.scrollLeft, event.clientY + canvas.scrollTop];
      canvas.setPointerCapture(event.pointerId);
      canvas.classList.add("drag");
    });
    canvas.addEventListener("pointermove", (event) => {
      if (from) canvas.scrollTo(from[0] - event.clientX, from[1] - event.clientY);
    });
    for (const end of ["pointerup", "pointercancel"]) {
      canvas.addEventListener(end, () => {
        from = null;
        canvas.classList.remove("drag");
      });
    }
  }

  // The timeline is one stop for the Tab key; arrow keys go from bar to bar.

  const timeline = document.getElementById("timeline");
  if (timeline) {
    const bars = [...timeline.querySelectorAll(".bar")];
    const told = document.getElementById("told");
    const hint = "Point at a bar, or go there with Tab and the arrow keys.";
    const tell = (event) => {
      const bar = event.target.closest(".bar");
      told.textContent = bar ? bar.querySelector("title").textContent : hint;
    };
    told.textContent = hint;
    bars[0]?.setAttribute("tabindex", "0");
    timeline.addEventListener("pointerover", tell);
    timeline.addEventListener("focusin", tell);
    timeline.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      const number = bars.indexOf(event.target);
      const next = step && bars[number + step];
      if (!next) return;
      event.preventDefault();
      bars[number].setAttribute("tabindex", "-1");
      next.setAttribute("tabindex", "0");
      next.focus();
    });
  }
})();
