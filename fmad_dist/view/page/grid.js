// A grid of thumbnails that has elements only for what can be seen, so that many thousands of images stay quick.
const CAPTION = 34; // px below a picture
const GAP = 10;
const WIDEST = 200; // px of a tile
const MARGIN_ROWS = 2; // above and below what can be seen
const PAUSE_MS = 60; // a tile that is scrolled past asks for nothing

export class Grid {
  constructor(element, page, open) {
    this.element = element;
    this.page = page;
    this.open = open;
    this.rows = [];
    this.tiles = new Map(); // place in `rows` -> element
    this.active = 0; // the place that the Tab key reaches
    this.pending = false;
    const draw = () => this.drawSoon();
    addEventListener("scroll", draw, { passive: true });
    new ResizeObserver(() => this.layOut()).observe(element);
    element.addEventListener("keydown", (event) => this.move(event));
  }

  show(rows) {
    this.rows = rows;
    this.active = 0;
    this.clear();
    this.layOut();
  }

  layOut() {
    const width = this.element.clientWidth;
    const columns = Math.max(2, Math.ceil((width + GAP) / (WIDEST + GAP)));
    const side = (width - GAP * (columns - 1)) / columns;
    if (columns !== this.columns || side !== this.side) this.clear();
    Object.assign(this, { columns, side, height: side + CAPTION + GAP });
    this.element.style.height = `${Math.ceil(this.rows.length / columns) * this.height}px`;
    this.draw();
  }

  clear() {
    for (const tile of this.tiles.values()) tile.remove();
    this.tiles.clear();
  }

  drawSoon() {
    if (this.pending) return;
    this.pending = true;
    requestAnimationFrame(() => {
      this.pending = false;
      this.draw();
    });
  }

  draw() {
    const top = -this.element.getBoundingClientRect().top;
    const first = Math.max(0, Math.floor(top / this.height) - MARGIN_ROWS) * this.columns;
    const last = Math.min(this.rows.length, (Math.ceil((top + innerHeight) / this.height) + MARGIN_ROWS) * this.columns);
    for (const [place, tile] of this.tiles) {
      if (place < first || place >= last) {
        tile.remove();
        this.tiles.delete(place);
      }
    }
    for (let place = first; place < last; place += 1) {
      if (!this.tiles.has(place)) this.tiles.set(place, this.add(place));
    }
    const reached = this.tiles.has(this.active) ? this.active : first;
    for (const [place, tile] of this.tiles) tile.tabIndex = place === reached ? 0 : -1;
  }

  add(place) {
    const row = this.rows[place];
    const tile = document.createElement("button");
    tile.type = "button";
    const [x, y] = [(place % this.columns) * (this.side + GAP), Math.floor(place / this.columns) * this.height];
    tile.style.width = `${this.side}px`;
    tile.style.height = `${this.height - GAP}px`;
    tile.style.transform = `translate(${x}px, ${y}px)`;
    tile.innerHTML = '<span class="frame"><span class="pair"></span></span><span class="score"><b></b><span class="verdict"></span></span><span class="name"></span>';
    tile.querySelector("b").textContent = this.page.shown(row);
    tile.querySelector(".name").textContent = `\u200e${this.page.data.names[row]}`; // cut at its beginning, read from left
    tile.title = this.page.data.names[row];
    this.judge(tile, row);
    if (this.page.data.pictures[row]) setTimeout(() => tile.isConnected && this.load(tile, row), PAUSE_MS);
    else tile.querySelector(".frame").replaceChildren(absent(row in this.page.data.errors ? "not readable" : "no picture"));
    tile.addEventListener("click", () => this.open(place));
    tile.addEventListener("focus", () => {
      this.active = place;
      for (const [other, one] of this.tiles) one.tabIndex = other === place ? 0 : -1;
    });
    this.element.append(tile);
    return tile;
  }

  load(tile, row) {
    const pair = tile.querySelector(".pair");
    const image = new Image();
    image.alt = "";
    image.addEventListener("load", () => {
      pair.style.setProperty("--ratio", image.naturalWidth / image.naturalHeight);
      if (this.page.data.heats[row]) this.warm(pair, row);
    });
    image.addEventListener("error", () => tile.querySelector(".frame").replaceChildren(absent("not readable")));
    image.src = this.page.url(row, "image", true);
    pair.append(image);
  }

  warm(pair, row) {
    const heat = Object.assign(new Image(), { alt: "", className: "heat" });
    heat.addEventListener("error", () => heat.remove());
    heat.src = this.page.url(row, "heat", true);
    pair.append(heat);
  }

  judge(tile, row) {
    const verdict = this.page.verdict(row);
    tile.className = `tile ${verdict}`;
    tile.querySelector(".verdict").textContent = verdict;
    tile.setAttribute("aria-label", `${this.page.data.names[row]}, ${this.page.says(row)}`);
  }

  refresh() {
    for (const [place, tile] of this.tiles) this.judge(tile, this.rows[place]);
  }

  move(event) {
    const page = Math.max(1, Math.floor(innerHeight / this.height)) * this.columns;
    const last = this.rows.length - 1;
    const targets = {
      ArrowLeft: this.active - 1,
      ArrowRight: this.active + 1,
      ArrowUp: this.active - this.columns,
      ArrowDown: this.active + this.columns,
      PageUp: Math.max(this.active - page, 0),
      PageDown: Math.min(this.active + page, last),
      Home: 0,
      End: last,
    };
    if (!(event.key in targets) || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    const place = targets[event.key];
    if (place >= 0 && place <= last) this.focus(place);
  }

  focus(place) {
    if (!this.rows.length) return;
    this.active = place;
    const top = this.element.getBoundingClientRect().top + Math.floor(place / this.columns) * this.height;
    const covered = getComputedStyle(document.getElementById("controls")).position === "sticky" ? document.getElementById("controls").offsetHeight : 0;
    if (top < covered + GAP) scrollBy(0, top - covered - GAP);
    else if (top + this.height > innerHeight) scrollBy(0, top + this.height - innerHeight);
    this.draw();
    this.tiles.get(place)?.focus({ preventScroll: true });
  }
}

function absent(text) {
  return Object.assign(document.createElement("span"), { className: "absent", textContent: text });
}
