"use strict";
// Values under the pointer, and the filters of the sample list. Text from the run enters as textContent only.

const data = JSON.parse(document.getElementById("data").textContent);
const tip = document.getElementById("tip");

function element(name, parent, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  parent.append(made);
  return made;
}

function nearest(values, wanted) {
  let low = 0, high = values.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (values[middle] < wanted) low = middle; else high = middle;
  }
  return wanted - values[low] <= values[high] - wanted ? low : high;
}

function format(value) {
  const size = Math.abs(value);
  if (size >= 1e9 || (size > 0 && size < 1e-4)) return value.toExponential(2);
  if (size >= 1000 || Number.isInteger(value)) return value.toLocaleString("en-US", { maximumFractionDigits: 0 });
  return value.toPrecision(4);
}

function attach(figure) {
  const chart = data[Number(figure.dataset.chart)];
  const svg = figure.querySelector(":scope > svg");
  const [low, high, start, end] = chart.x;
  const cursor = document.createElementNS("http://www.w3.org/2000/svg", "path");
  cursor.setAttribute("class", "cursor");

  function show(event) {
    const box = svg.getBoundingClientRect();
    const scale = svg.viewBox.baseVal.width / box.width;
    const share = ((event.clientX - box.left) * scale - start) / (end - start);
    const wanted = low + Math.min(Math.max(share, 0), 1) * (high - low);
    const places = chart.lines.map((line) => nearest(line.x, wanted));
    const steps = chart.lines.map((line, index) => line.x[places[index]]);
    const step = steps.reduce((best, each) => (Math.abs(each - wanted) < Math.abs(best - wanted) ? each : best));
    const at = start + ((step - low) / (high - low)) * (end - start);
    cursor.setAttribute("d", `M${at} ${chart.y[0]}V${chart.y[1]}`);
    if (!cursor.isConnected) svg.append(cursor);
    tip.replaceChildren();
    element("b", tip, `step ${step.toLocaleString("en-US")}`);
    chart.lines.forEach((line, index) => {
      const place = places[index];
      const row = element("div", tip);
      element("i", row, "", line.color);
      const other = steps[index] === step ? "" : ` (step ${steps[index].toLocaleString("en-US")})`;
      element("span", row, line.name + other);
      const interval = line.low ? ` [${format(line.low[place])}, ${format(line.high[place])}]` : "";
      element("strong", row, format(line.y[place]) + interval);
    });
    tip.hidden = false;
    const x = box.left + at / scale, room = document.documentElement.clientWidth;
    const left = x + 14 + tip.offsetWidth > room - 8 ? x - 14 - tip.offsetWidth : x + 14;
    tip.style.left = `${window.scrollX + Math.max(8, left)}px`;
    tip.style.top = `${window.scrollY + box.top + 12}px`;
  }

  function hide() {
    tip.hidden = true;
    cursor.remove();
  }

  svg.addEventListener("pointermove", show);
  svg.addEventListener("pointerdown", show);
  svg.addEventListener("pointerleave", hide);
}

document.querySelectorAll("figure[data-chart]").forEach(attach);

const filters = document.getElementById("filters");
if (filters) {
  const samples = [...document.querySelectorAll("#list > .sample")];
  const apply = () => {
    const wanted = Object.fromEntries(new FormData(filters));
    const text = wanted.text.trim().toLowerCase();
    let shown = 0;
    for (const sample of samples) {
      const fits = ["split", "level", "finish"].every((name) => !wanted[name] || sample.dataset[name] === wanted[name])
        && (!text || sample.textContent.toLowerCase().includes(text));
      sample.hidden = !fits;
      shown += fits ? 1 : 0;
    }
    document.getElementById("shown").textContent = `${shown} of ${samples.length} shown`;
  };
  filters.addEventListener("input", apply);
  filters.addEventListener("submit", (event) => event.preventDefault());
  apply();
}
