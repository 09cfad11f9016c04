/* The explorer's own script: unpacks the rows, draws them with regl-scatterplot, and says what each one is.
   Every name is set as text (textContent), never as HTML. */
"use strict";
(async () => {
  const byId = (id) => document.getElementById(id);
  const LISTED = 200, KEPT_SHEETS = 12, PALETTE = 10, RAMP = 64;
  const data = await unpack(byId("block"));
  const rows = data.id.length;
  const sheets = [...document.querySelectorAll("script.sheet")];
  const drawn = new Map();
  const calm = matchMedia("(prefers-reduced-motion: reduce)");
  let listed = [], colouring = "label", pointer = [0, 0];

  async function unpack(block) {
    const bytes = Uint8Array.from(atob(block.textContent), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return JSON.parse(await new Response(stream).text());
  }

  function make(tag, words, className) {
    const element = document.createElement(tag);
    if (words !== undefined) element.textContent = words;
    if (className) element.className = className;
    return element;
  }

  /* Thumbnails: a sheet is decoded when its first tile is wanted, and the last few are kept. */
  function sheet(number) {
    if (!drawn.has(number)) {
      const image = new Image();
      image.src = "data:image/webp;base64," + sheets[number].textContent;
      drawn.set(number, image.decode().then(() => image));
      if (drawn.size > KEPT_SHEETS) drawn.delete(drawn.keys().next().value);
    }
    return drawn.get(number);
  }

  function thumbnail(row) {
    const side = data.tile, canvas = make("canvas", undefined, "thumb");
    canvas.width = canvas.height = side || 1;
    canvas.setAttribute("aria-hidden", "true");
    if (side) {
      const across = Math.sqrt(data.perSheet), place = row % data.perSheet;
      sheet(Math.floor(row / data.perSheet)).then((image) => {
        const left = side * (place % across), top = side * Math.floor(place / across);
        canvas.getContext("2d").drawImage(image, left, top, side, side, 0, 0, side, side);
        canvas.dataset.drawn = "yes";
      });
    }
    return canvas;
  }

  /* Colours: those of the page's stylesheet, as numbers for the graphics card. */
  const dot = make("canvas").getContext("2d", { willReadFrequently: true });
  function numbers(colour) {
    const style = getComputedStyle(document.documentElement);
    dot.fillStyle = colour.replace(/var\((--\w+)\)/g, (_, name) => style.getPropertyValue(name).trim());
    dot.fillRect(0, 0, 1, 1);
    return [...dot.getImageData(0, 0, 1, 1).data].map((value) => value / 255);
  }

  function classColour(number) {
    if (number < PALETTE) return `var(--k${number})`;
    return `oklch(${(0.58 + 0.07 * (number % 3)).toFixed(2)} 0.14 ${Math.round((number * 137.508) % 360)})`;
  }

  const ofClasses = () => [...data.classes.map((name, number) => [name, classColour(number)])];
  const missing = ["no label", "var(--rule)"];
  const colourings = {
    label: { value: (row) => (data.label[row] < 0 ? data.classes.length : data.label[row]), keys: () => [...ofClasses(), missing] },
    guess: { value: (row) => data.guess[row], keys: ofClasses },
    right: {
      value: (row) => (data.label[row] < 0 ? 2 : Number(data.label[row] !== data.guess[row])),
      keys: () => [["right", "var(--right)"], ["wrong", "var(--k1)"], missing],
    },
    role: { value: (row) => data.role[row], keys: () => data.roles.map((name, number) => [name, ["var(--k1)", "var(--right)", "var(--k2)", "var(--k4)"][number]]) },
  };

  const canvas = byId("points"), map = byId("map");
  const whole = () => Math.max(1, map.clientHeight / map.clientWidth);
  const scatter = window.createScatterplot({
    canvas, width: "auto", height: "auto", cameraDistance: whole(), pointSize: rows > 20000 ? 2.5 : rows > 3000 ? 4 : 6, opacity: 0.85,
    pointOutlineWidth: 3, pointSizeSelected: 3, opacityInactiveScale: 0.25, lassoMinDelay: 5, lassoLineWidth: 2,
  });
  const places = data.maps.map(({ x, y }) => [x, y].map((list) => Float32Array.from(list, (v) => (v / 65535) * 1.9 - 0.95)));

  /* One drawing after the other; of those that were asked for meanwhile only the last. */
  let painting = Promise.resolve(), asked = 0;
  function paint(transition) {
    const mine = (asked += 1);
    painting = painting.then(() => (mine === asked ? draw(transition) : undefined));
    return painting;
  }

  async function draw(transition) {
    const [x, y] = places[byId("space").selectedIndex];
    const ink = numbers("var(--ink)"), shared = {
      pointColorActive: [ink], pointColorHover: [ink], lassoColor: ink, backgroundColor: numbers("var(--paper)"),
    };
    let valueA, zDataType = "categorical", pointColor;
    if (colouring === "confidence") {
      valueA = Float32Array.from(data.confidence);
      zDataType = "continuous";
      const low = numbers("var(--k1)"), high = numbers("var(--right)");
      pointColor = Array.from({ length: RAMP }, (_, at) => low.map((v, i) => v + ((high[i] - v) * at) / (RAMP - 1)));
    } else {
      valueA = Float32Array.from({ length: rows }, (_, row) => colourings[colouring].value(row));
      pointColor = colourings[colouring].keys().map(([, colour]) => numbers(colour));
    }
    await scatter.set({ colorBy: "valueA", pointColor, ...shared });
    await scatter.draw({ x, y, valueA }, { zDataType, transition: transition && !calm.matches, transitionDuration: 600, select: listed });
    window.explorer.drawn += 1;
  }

  function showLegend() {
    const legend = byId("legend");
    legend.replaceChildren();
    if (colouring === "confidence") {
      const item = make("li", undefined, "ramp"), bar = make("span"), ends = make("small");
      bar.style.background = "linear-gradient(to right, var(--k1), var(--right))";
      ends.append(make("span", "0 %"), make("span", "100 %"));
      item.append(bar, ends);
      legend.append(item);
      return;
    }
    const { value, keys } = colourings[colouring], counts = new Map();
    for (let row = 0; row < rows; row += 1) counts.set(value(row), (counts.get(value(row)) || 0) + 1);
    keys().forEach(([name, colour], number) => {
      if (!counts.get(number)) return;
      const item = make("li"), button = make("button"), mark = make("span", undefined, "dot");
      mark.style.background = colour;
      button.type = "button";
      button.append(mark, make("span", name), make("small", counts.get(number).toLocaleString("en")));
      button.addEventListener("click", () => choose(find((row) => value(row) === number)));
      item.append(button);
      legend.append(item);
    });
  }

  /* What a row is, in words. */
  const nameOf = (number) => (number < 0 ? "no label" : data.classes[number]);
  function words(row) {
    const split = data.splits[data.split[row]], role = data.roles[data.role[row]];
    const told = make("span", undefined, "what"), wrong = data.label[row] >= 0 && data.label[row] !== data.guess[row];
    told.append(make("b", `${nameOf(data.label[row])}${wrong ? ` taken for ${nameOf(data.guess[row])}` : ""}`));
    const guess = `${data.label[row] < 0 ? `predicted ${nameOf(data.guess[row])}, ` : ""}confidence ${(100 * data.confidence[row]).toFixed(1)} %`;
    told.append(make("span", guess, "unit"), make("span", `${split} ${data.id[row]}${role === split ? "" : `, ${role}`}`, "unit"));
    told.append(make("span", data.path[row], "unit"));
    return told;
  }

  function find(test) {
    const found = [];
    for (let row = 0; row < rows; row += 1) if (test(row)) found.push(row);
    return found;
  }

  function list(found) {
    listed = found;
    const shown = found.slice(0, LISTED);
    const more = found.length > LISTED ? `, the first ${LISTED} are listed` : "";
    byId("count").textContent = found.length ? `${found.length.toLocaleString("en")} row${found.length > 1 ? "s" : ""}${more}` : "No row.";
    byId("list").replaceChildren(...shown.map((row) => {
      const item = make("li"), button = make("button");
      button.type = "button";
      button.dataset.row = row;
      button.append(thumbnail(row), words(row));
      button.addEventListener("click", () => goTo([row]));
      item.append(button);
      return item;
    }));
    byId("csv").hidden = !found.length;
  }

  function choose(found) {
    list(found);
    if (found.length) scatter.select(found, { preventEvent: true });
    else scatter.deselect({ preventEvent: true });
  }

  function goTo(found) {
    const [x, y] = places[byId("space").selectedIndex], row = found[0];
    scatter.select(found, { preventEvent: true });
    scatter.zoomToLocation([x[row], y[row]], 0.25, { transition: !calm.matches });
  }

  scatter.subscribe("select", ({ points }) => list([...points]));
  scatter.subscribe("deselect", () => list([]));
  scatter.subscribe("pointOver", (row) => {
    const tip = byId("tip"), [left, top] = pointer;
    tip.replaceChildren(thumbnail(row), words(row));
    tip.dataset.row = row;
    tip.hidden = false;
    tip.style.left = `${Math.max(0, Math.min(left + 16, map.clientWidth - tip.offsetWidth - 4))}px`;
    tip.style.top = `${top + 16 + tip.offsetHeight > map.clientHeight ? Math.max(0, top - tip.offsetHeight - 16) : top + 16}px`;
  });
  scatter.subscribe("pointOut", () => { byId("tip").hidden = true; });
  map.addEventListener("mousemove", (event) => {
    const box = map.getBoundingClientRect();
    pointer = [event.clientX - box.left, event.clientY - box.top];
  }, { capture: true });

  /* One finger acts as the mouse, two fingers as its wheel. */
  const touches = { touchstart: "mousedown", touchmove: "mousemove", touchend: "mouseup" };
  let apart = 0;
  for (const [kind, as] of Object.entries(touches)) {
    canvas.addEventListener(kind, (event) => {
      event.preventDefault();
      const [one, two] = event.touches.length ? event.touches : event.changedTouches;
      const at = { clientX: one.clientX, clientY: one.clientY, bubbles: true, buttons: 1, view: window };
      if (two) {
        const now = Math.hypot(one.clientX - two.clientX, one.clientY - two.clientY);
        if (apart) canvas.dispatchEvent(new WheelEvent("wheel", { ...at, deltaY: 2 * (apart - now), cancelable: true }));
        apart = now;
        return;
      }
      apart = 0;
      if (as === "mousedown") canvas.dispatchEvent(new MouseEvent("mouseenter", at));
      if (as === "mousedown") canvas.dispatchEvent(new MouseEvent("mousemove", at));
      canvas.dispatchEvent(new MouseEvent(as, at));
      if (as === "mouseup") canvas.dispatchEvent(new MouseEvent("click", at));
    }, { passive: false });
  }

  function mode(lasso) {
    scatter.set({ mouseMode: lasso ? "lasso" : "panZoom" });
    byId("lasso").setAttribute("aria-pressed", String(lasso));
    byId("pan").setAttribute("aria-pressed", String(!lasso));
  }

  function zoom(factor) {
    scatter.zoomToLocation(scatter.get("cameraTarget"), factor * scatter.get("cameraDistance"), { transition: !calm.matches, transitionDuration: 200 });
  }

  function save() {
    const cell = (text) => {
      const safe = /^[=+\-@\uff1d\uff0b\uff0d\uff20]/.test(text) ? `'${text}` : text;
      return `"${safe.replaceAll('"', '""')}"`;
    };
    const lines = listed.map((row) => [data.id[row], cell(data.path[row]), cell(nameOf(data.guess[row])), data.confidence[row], cell(data.label[row] < 0 ? "" : nameOf(data.label[row])), data.splits[data.split[row]]].join(","));
    const link = make("a");
    link.href = URL.createObjectURL(new Blob([["row,path,guess,probability,label,split", ...lines, ""].join("\n")], { type: "text/csv" }));
    link.download = "rows.csv";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  const sure = (row) => data.confidence[row];
  byId("space").append(...data.maps.map(({ name }) => make("option", name)));
  byId("space").addEventListener("change", () => paint(true));
  byId("colour").addEventListener("change", (event) => { colouring = event.target.value; showLegend(); paint(false); });
  byId("pan").addEventListener("click", () => mode(false));
  byId("lasso").addEventListener("click", () => mode(true));
  byId("nearer").addEventListener("click", () => zoom(0.6));
  byId("further").addEventListener("click", () => zoom(1 / 0.6));
  byId("whole").addEventListener("click", () => scatter.zoomToLocation([0, 0], whole(), { transition: !calm.matches }));
  byId("mistakes").addEventListener("click", () => choose(find((row) => data.label[row] >= 0 && data.label[row] !== data.guess[row]).sort((a, b) => sure(b) - sure(a))));
  byId("unsure").addEventListener("click", () => choose([...Array(rows).keys()].sort((a, b) => sure(a) - sure(b)).slice(0, LISTED)));
  byId("next").hidden = !data.suggested.length;
  byId("next").addEventListener("click", () => choose(data.suggested));
  byId("csv").addEventListener("click", save);
  byId("search").addEventListener("submit", (event) => {
    event.preventDefault();
    const wanted = byId("wanted").value.trim(), number = /^\d+$/.test(wanted) ? Number(wanted) : null;
    const found = wanted ? find((row) => (number === null ? data.path[row].includes(wanted) : data.id[row] === number)) : [];
    choose(found);
    if (found.length && found.length < 5) goTo(found);
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => paint(false));

  window.explorer = { scatter, data, drawn: 0, places };
  showLegend();
  await paint(false);
  byId("wait").remove();
  document.documentElement.dataset.ready = "yes";
})();
