// The page: what was chosen, which rows fit it, and the parts that show them.
import { Grid } from "./grid.js";
import { drawHistogram } from "./histogram.js";
import { LargeView } from "./large.js";

const by = (id) => document.getElementById(id);
const STEPS = 1000; // of the threshold's slider

class Page {
  constructor(data) {
    this.data = data;
    this.threshold = data.scale.start;
    this.rows = data.names.map((_, row) => row);
    this.chosen = [];
    this.large = new LargeView(by("large"), this, (place) => this.grid.focus(place));
    this.grid = new Grid(by("grid"), this, (place) => this.large.open(this.chosen, place));
  }

  verdict(row) {
    if (this.data.values[row] === null) return "unreadable";
    return this.data.values[row] > this.threshold ? "anomalous" : "normal";
  }

  truth(row) {
    return this.data.truthNames.length ? this.data.truthNames[this.data.truths[row]] : "";
  }

  says(row) {
    const { scale, scores, classNames, classes } = this.data;
    const parts = [this.verdict(row), classNames[classes[row]]];
    if (scores[row] !== null) parts.unshift(`${scale.name} ${this.shown(row)}`);
    if (scores[row] !== null && scale.name !== "score") parts.push(`score ${scores[row]}`);
    if (this.truth(row)) parts.push(`truth: ${this.truth(row)}`);
    if (row in this.data.errors) parts.push(this.data.errors[row]);
    return parts.filter(Boolean).join(" · ");
  }

  shown(row) {
    const value = this.data.values[row];
    return value === null ? "" : value.toPrecision(3);
  }

  url(row, kind, small) {
    return `/${small ? "thumbnail" : "image"}/${row}${kind === "heat" ? "/heat" : ""}?${this.data.start}`;
  }

  choose() {
    const { classes, truths, names, values } = this.data;
    const [chosenClass, chosenTruth, decision] = [by("class").value, by("truth").value, by("decision").value];
    const shown = this.rows.filter(
      (row) =>
        (chosenClass === "" || classes[row] === Number(chosenClass)) &&
        (chosenTruth === "" || truths[row] === Number(chosenTruth)) &&
        (decision === "" || this.verdict(row) === decision),
    );
    const order = by("order").value;
    const sign = order === "lowest" ? 1 : -1;
    const last = sign * Infinity; // where unreadable images go, whatever the order
    const byName = (a, b) => (names[a] < names[b] ? -1 : names[a] > names[b] ? 1 : a - b);
    const byScore = (a, b) => {
      const [one, other] = [values[a] ?? last, values[b] ?? last];
      return one === other ? byName(a, b) : sign * (one - other);
    };
    shown.sort(order === "name" ? byName : byScore);
    this.chosen = shown;
    by("nothing").hidden = shown.length > 0;
    this.grid.show(shown);
    this.count();
  }

  count() {
    const number = { anomalous: 0, normal: 0, unreadable: 0 };
    const wrong = { anomalous: 0, normal: 0 };
    const chosen = by("class").value;
    const rows = chosen === "" ? this.rows : this.rows.filter((row) => this.data.classes[row] === Number(chosen));
    for (const row of rows) {
      const verdict = this.verdict(row);
      number[verdict] += 1;
      if (this.truth(row) && verdict in wrong && (verdict === "normal") !== (this.truth(row) === "good")) wrong[verdict] += 1;
    }
    const known = this.data.truthNames.length > 0;
    const parts = [
      ["anomalous", number.anomalous, known ? `false alarms ${wrong.anomalous}` : ""],
      ["normal", number.normal, known ? `missed ${wrong.normal}` : ""],
    ];
    if (number.unreadable) parts.push(["unreadable", number.unreadable, ""]);
    by("counts").replaceChildren(
      ...parts.map(([name, count, note]) => {
        const part = document.createElement("span");
        part.className = name;
        const strong = document.createElement("b");
        strong.textContent = count.toLocaleString("en");
        part.append(strong, ` ${name} `);
        if (note) part.append(Object.assign(document.createElement("small"), { textContent: `(${note})` }));
        return part;
      }),
    );
  }

  setThreshold(value) {
    this.threshold = value;
    by("threshold-value").textContent = Number(value.toPrecision(4));
    drawHistogram(by("histogram"), this.data, value);
    if (by("decision").value === "") {
      this.count();
      this.grid.refresh();
    } else {
      this.choose();
    }
  }

  setOpacity(percent) {
    document.documentElement.style.setProperty("--opacity", percent / 100);
    for (const id of ["opacity", "large-opacity"]) by(id).value = percent;
    by("opacity-value").textContent = `${percent} %`;
  }

  start() {
    const { scale, facts, names, classNames, truthNames, heats } = this.data;
    by("facts").textContent = [
      `${names.length.toLocaleString("en")} images`,
      ...Object.entries(facts).filter(([, value]) => value).map(([name, value]) => `${name} ${value}`),
    ].join(" · ");
    for (const [id, options] of [["class", classNames], ["truth", truthNames]]) {
      by(id).append(...options.map((name, position) => new Option(name || "none", position)));
    }
    by("truth-choice").hidden = truthNames.length === 0;
    by("threshold-says").textContent = `At first: ${scale.meaning}.`;
    const slider = by("threshold");
    const width = scale.high - scale.low || 1;
    Object.assign(slider, { min: 0, max: STEPS, step: 1 });
    const place = () => (slider.value = Math.round(((this.threshold - scale.low) / width) * STEPS));
    slider.addEventListener("input", () => this.setThreshold(scale.low + (slider.value / STEPS) * width));
    by("reset").addEventListener("click", () => {
      this.setThreshold(scale.start);
      place();
    });
    for (const id of ["order", "class", "decision", "truth"]) by(id).addEventListener("change", () => this.choose());
    for (const id of ["opacity", "large-opacity"]) by(id).addEventListener("input", (event) => this.setOpacity(event.target.value));
    by("opacity").closest("label").hidden = by("large-opacity").closest("label").hidden = !heats.includes(1);
    addEventListener("resize", () => drawHistogram(by("histogram"), this.data, this.threshold));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () =>
      drawHistogram(by("histogram"), this.data, this.threshold),
    );
    this.setOpacity(70);
    this.choose();
    this.setThreshold(scale.start);
    place();
    document.body.dataset.ready = "yes";
  }
}

const answer = await fetch("/data.json");
new Page(await answer.json()).start();
